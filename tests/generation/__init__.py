"""Tests of `eqx_bart.generation`."""
