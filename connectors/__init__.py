"""Sources: how streams, files and databases come in, each as a Bytewax source of ``MicroBatch``."""
