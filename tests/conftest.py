"""Eight virtual CPU devices, a tiny model, and meshes to run it on."""

import os
import shutil
import tempfile

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['JAX_NUM_CPU_DEVICES'] = '8'
# Compiling is most of what these tests do; the programs mean the same. The newer
# emitters compile for twice as long.
os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_cpu_use_fusion_emitters=false'
)

import jax
import pytest

from dash_jax import sharding
from dash_jax.model import llama

# Now, before a test changes the environment of what it starts.
assert len(jax.devices()) == 8

TINY = llama.LlamaConfig(
  vocab_size=64,
  embed_dim=32,
  num_layers=2,
  num_heads=8,
  num_kv_heads=4,
  head_dim=8,
  ffw_dim=48,
)


def pytest_configure(config):
  """What one process of this session compiles, the others read: pytest's workers,
  and the commands that tests run."""
  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    folder = tempfile.mkdtemp(prefix='dash_jax')
    config.add_cleanup(lambda: shutil.rmtree(folder))
    os.environ |= {
      'JAX_COMPILATION_CACHE_DIR': folder,
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
    }
    # This process has read its environment.
    jax.config.update('jax_compilation_cache_dir', folder)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
    jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)


def _one_device_mesh():
  return jax.make_mesh((1, 1, 1), sharding.AXES, devices=jax.devices()[:1])


@pytest.fixture(scope='module', autouse=True)
def _forget_programs():
  """Every program maps memory, of which a process may have so many pieces."""
  yield
  jax.clear_caches()


@pytest.fixture
def mesh():
  """One device, with the axes every program names."""
  with jax.set_mesh(_one_device_mesh()) as mesh:
    yield mesh


@pytest.fixture
def tiny() -> llama.LlamaConfig:
  return TINY
