"""Every test sees 8 CPU devices, exact matmuls and no network.

`UAE_JAX_TEST_PLATFORM=cuda pytest` (or `tpu`) runs the same tests on an
accelerator, and with them those marked `gpu_only` or `tpu_only`.
"""

import atexit
import gc
import os
import shutil
import tempfile
from importlib import metadata

PLATFORM = os.environ.get('UAE_JAX_TEST_PLATFORM', 'cpu')
os.environ['JAX_PLATFORMS'] = 'cpu' if PLATFORM == 'cpu' else f'{PLATFORM},cpu'
os.environ['HF_HUB_OFFLINE'] = '1'
os.environ['TOKENIZERS_PARALLELISM'] = 'false'
DEVICES = '--xla_force_host_platform_device_count=8'
# On CPUs, compile time counts here, not run time.
FAST = (
  '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
)
if metadata.version('jaxlib').startswith('0.10.'):  # later ones have no such
  FAST += ' --xla_cpu_use_fusion_emitters=false'
if DEVICES not in os.environ.get('XLA_FLAGS', ''):
  flags = [os.environ.get('XLA_FLAGS', ''), DEVICES]
  os.environ['XLA_FLAGS'] = ' '.join(flags + [FAST] * (PLATFORM == 'cpu'))
# Workers share what they compile; a session starts with nothing.
if 'UAE_JAX_TEST_CACHE' not in os.environ:
  os.environ['UAE_JAX_TEST_CACHE'] = tempfile.mkdtemp()
  atexit.register(
    shutil.rmtree, os.environ['UAE_JAX_TEST_CACHE'], ignore_errors=True
  )

import jax  # noqa: E402  reads the variables above
import pytest  # noqa: E402

jax.config.update('jax_default_matmul_precision', 'highest')
jax.config.update('jax_compilation_cache_dir', os.environ['UAE_JAX_TEST_CACHE'])
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


@pytest.fixture(autouse=True, scope='module')
def forget_programs():
  """A worker that kept all files' programs would run out of memory maps."""
  yield
  jax.clear_caches()
  gc.collect()


@pytest.fixture(scope='session')
def store():
  """Google Cloud Storage, which is a thread of this process."""
  from benchmarks.gcs import Server

  server = Server()
  server.start()
  with pytest.MonkeyPatch.context() as patch:
    for name, value in server.environment().items():
      patch.setenv(name, value)
    yield server
  server.join()


@pytest.fixture
def bucket(store, tmp_path):
  """An address of its own."""
  return f'gs://{store.BUCKET}/{tmp_path.name}/run'


ONLY = {'gpu_only': 'gpu', 'tpu_only': 'tpu'}


def pytest_collection_modifyitems(items):
  """Leaves out tests of accelerators that this run does not use."""
  for item in items:
    for marker, backend in ONLY.items():
      if item.get_closest_marker(marker) and jax.default_backend() != backend:
        reason = f'{marker}: this is {jax.default_backend()}'
        item.add_marker(pytest.mark.skip(reason=reason))
