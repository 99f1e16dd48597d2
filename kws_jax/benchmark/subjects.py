"""What is measured: a network that is trained, a supernet that is searched, and their input.

They are those of every training and every search; only augmentation is off, so that a peer can do
the same arithmetic.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from kws_jax import costs, frontends, network, quantizers
from kws_jax.data.backgrounds import int16_to_float
from kws_jax.search import arch as arch_lib
from kws_jax.search import prices
from kws_jax.search.step import arch_adam, init_search_state, make_search_parts, supernet_sgd
from kws_jax.space import Architecture, SearchSpace, table1_space
from kws_jax.training.chunks import compile_together
from kws_jax.training.state import adam_cosine, sgd
from kws_jax.training.steps import (
    Quantization,
    Recipe,
    init_train_state,
    make_train_step,
    step_key,
)

BATCH = 100
CHOICES = ('e3k3', 'e3k7', 'e4k3', 'e5k7', 'e5k7', 'e5k5')  # 13.6M MACs with the front end
LR, WEIGHT_DECAY = 0.05, 1e-4


def clips(batch: int = BATCH, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noisy tones int16 `[batch, 16000]`, and labels int32 `[batch]` of twelve classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(12, size=batch).astype(np.int32)
    time = np.arange(16000)[None] / 16000
    tones = np.sin(2 * np.pi * (200.0 + 300.0 * labels[:, None]) * time)
    return (4000 * tones + 800 * rng.normal(size=(batch, 16000))).astype(np.int16), labels


def plain_recipe() -> Recipe:
    """Nothing random and nothing added: what a peer can repeat."""
    return Recipe(augment={'max_shift': 0, 'noise_probability': 0.0})


@functools.cache
def front_end() -> frontends.FrontEnd:
    """Conv1D with 60 filters and log compression, which PyTorch has an operation for."""
    return frontends.make('conv', filters=60, initial='mel')


@functools.cache
def space() -> SearchSpace:
    """The search space of Peter et al. 2021, table 1."""
    return table1_space()


def architecture() -> Architecture:
    """The network of 13.6M MACs that is trained by both."""
    return space().architecture(CHOICES)


def network_macs(of: Architecture, made_by: frontends.FrontEnd | None = None) -> int:
    """MACs of one clip, the front end included."""
    table = costs.macs_table(of.space, front_end_macs=(made_by or front_end()).macs)
    return int(table.of(of))


class Trained:
    """A network that is trained for real: our jitted step, which donates its state."""

    def __init__(self, of: Architecture, *, batch: int = BATCH, quantized: bool = False):
        """Draws weights and compiles nothing yet."""
        recipe, optimizer = plain_recipe(), sgd(lr=LR, steps=10**6, weight_decay=WEIGHT_DECAY)
        self.params, self.averages = network.init(jax.random.key(0), front_end(), of)
        quantization, quant = None, None
        audio, labels = clips(batch)
        if quantized:
            quantization, quant = trained_bits(of, self.params, self.averages, audio)
        step = make_train_step(
            front_end=front_end(),
            architecture=of,
            optimizer=optimizer,
            recipe=recipe,
            quantization=quantization,
        )
        self.step = jax.jit(step, donate_argnums=0)
        self.state = init_train_state(
            *jax.tree.map(jnp.array, (self.params, self.averages)),
            optimizer,
            recipe=recipe,
            quant=quant,
            quant_optimizer=quantization.optimizer if quantized else None,
        )
        self.batch = {
            'audio': jnp.asarray(audio),
            'label': jnp.asarray(labels),
            'is_silence': jnp.zeros(batch, bool),
        }
        self.noise = jnp.zeros(16000, jnp.int16)

    def compile(self) -> int:
        """Traces and compiles the step; returns bytes of its working memory."""
        self.step = self.step.lower(self.state, self.batch, self.noise).compile()
        return self.step.memory_analysis().temp_size_in_bytes

    def __call__(self):
        """Trains one step."""
        self.state, metrics = self.step(self.state, self.batch, self.noise)
        return metrics['loss']


def trained_bits(of: Architecture, params, averages, audio) -> tuple[Quantization, dict]:
    """Learned widths everywhere, from 5 bits on, with a budget of 3."""
    form = quantizers.get_form('step_range')
    taps = front_end().stored_weights
    sites = {
        'weight_sites': costs.weight_sites(of, front_end_weights=taps),
        'activation_sites': costs.activation_sites(of),
    }
    bits = quantizers.uniform_bits(*sites.values(), weight=5, activation=5)

    def run(quant, params, averages, audio):
        return network.apply(
            params, averages, audio, front_end=front_end(), architecture=of, quant=quant
        )

    samples = quantizers.collect(run, params, averages, int16_to_float(jnp.asarray(audio[:16])))
    quant = quantizers.init_quant_params(form, samples, bits)
    learned = quantizers.uniform_bits(*sites.values(), weight=None, activation=None)
    price = lambda mean: 2.0 * jnp.square(jnp.maximum(mean - 3.0, 0.0))  # noqa: E731
    optimizer = adam_cosine(lr=0.01, steps=10**6)
    prices_of = {'weight_price': price, 'activation_price': price}
    return Quantization(form=form, bits=learned, optimizer=optimizer, **sites, **prices_of), quant


class Searched:
    """A search that runs for real: our jitted updates, as a search calls them on the CPU."""

    def __init__(
        self, *, batch: int = BATCH, arch: bool = False, searched: SearchSpace | None = None
    ):
        """Draws weights; `arch` also moves the arch params at every step."""
        self.space = searched or space()
        self.arch, self.recipe = arch, plain_recipe()
        table = costs.macs_table(self.space, front_end_macs=front_end().macs)
        self.target = 10e6
        shared = {
            'front_end': front_end(),
            'space': self.space,
            'price': prices.make('target', reference=self.target),
            'optimizer': supernet_sgd(
                lr=LR, warmup_lr=LR, warmup_steps=1, steps=10**6, weight_decay=WEIGHT_DECAY
            ),
            'arch_optimizer': arch_adam(lr=1e-3, warmup_steps=0, steps=10**6, every=1),
        }
        self.state = init_search_state(jax.random.key(0), **shared)
        update, move, _ = make_search_parts(table=table, recipe=self.recipe, **shared)
        self.update = jax.jit(update, donate_argnums=0)
        self.move = jax.jit(move, donate_argnums=0)
        audio, labels = (jnp.asarray(a) for a in clips(batch))
        self.batch = {
            'audio': audio,
            'label': labels,
            'is_silence': jnp.zeros(batch, bool),
            'validation_audio': audio,
            'validation_label': labels,
        }
        self.noise = jnp.zeros(16000, jnp.int16)

    def __call__(self):
        """One weight update of a sampled path, then one arch update if asked for."""
        state, metrics = self.update(self.state, self.batch, self.noise)
        if self.arch:
            state = self.move(state, self.batch)
        self.state = state.replace(step=state.step + 1)
        # all that is to be waited for: the arch update is a program of its own
        return metrics['loss'], self.state.step, self.state.arch

    def compile(self) -> int:
        """Traces and compiles what a step calls; returns bytes of its working memory."""
        calls = [(self.update, self.state, self.batch, self.noise)]
        if self.arch:
            calls.append((self.move, self.state, self.batch))
        programs = compile_together(*calls)
        self.update, self.move = programs[0], programs[-1]  # without arch, move is not called
        return max(program.memory_analysis().temp_size_in_bytes for program in programs)

    def path(self, step: int) -> np.ndarray:
        """The path that the weight update of a step samples while arch params are uniform."""
        uniform = jax.tree.map(jnp.zeros_like, self.state.arch)
        key = step_key(self.recipe, jnp.int32(step), 2)
        return np.asarray(arch_lib.sample_path(key, self.space, uniform))
