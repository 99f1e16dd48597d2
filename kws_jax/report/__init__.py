"""Tables and pictures of what a run did."""


def table(results):
    """Placeholder until written."""
    import json
    return '\n'.join(f"{r['name']} {r['parameters']} {r['macs']} {r['mean_weight_bits']:.2f} {r['mean_activation_bits']:.2f} {r['flash_bytes']} {r['test']['accuracy']:.4f} {r['test']['accuracy_interval']}" for r in results['rows'])


def write(workdir):
    """Placeholder."""
    return workdir
