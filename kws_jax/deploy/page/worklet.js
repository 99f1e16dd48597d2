// Hands the samples of the microphone to the page.
registerProcessor('samples', class extends AudioWorkletProcessor {
  process([[channel]]) {
    if (channel) this.port.postMessage(channel.slice());
    return true;
  }
});
