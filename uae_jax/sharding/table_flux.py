"""Where the parameters of FLUX live. Y layers lead, never sharded."""

from jax.sharding import PartitionSpec as P

_DOUBLE, _SINGLE = 'double_blocks/block', 'single_blocks/block'
_QKV = rf'({_DOUBLE}/(image|text)|{_SINGLE}/all)'

RULES = (
  (r'(x|context)/kernel', P('data', 'model')),  # E D
  (r'(time|pooled|guidance)/fc1/kernel', P('data', 'model')),  # E D
  (r'(time|pooled|guidance)/fc1/bias', P('model')),  # D
  (r'(time|pooled|guidance)/fc2/kernel', P('model', 'data')),  # D D
  (r'final_mod/kernel', P('data', None, 'model')),  # D 2 D
  (r'proj_out/kernel', P('data')),  # D E
  (rf'({_DOUBLE}/(image|text)_|{_SINGLE}/)mod/kernel',
   P(None, 'data', None, 'model')),  # Y D 6 D
  (rf'{_QKV}/[qkv]/kernel', P(None, 'data', 'model')),  # Y D N H
  (rf'{_QKV}/[qkv]/bias', P(None, 'model')),  # Y N H
  (rf'{_QKV}/[qk]_norm/scale', P()),  # Y H
  (rf'{_DOUBLE}/(image|text)_out/kernel', P(None, 'model', None, 'data')),
  (rf'{_DOUBLE}/(image|text)_mlp/fc1/kernel', P(None, 'data', 'model')),
  (rf'{_DOUBLE}/(image|text)_mlp/fc1/bias', P(None, 'model')),  # Y F
  (rf'{_DOUBLE}/(image|text)_mlp/fc2/kernel', P(None, 'model', 'data')),
  (rf'{_SINGLE}/mlp/kernel', P(None, 'data', 'model')),  # Y D F
  (rf'{_SINGLE}/mlp/bias', P(None, 'model')),  # Y F
  (rf'{_SINGLE}/out/kernel', P(None, 'model', 'data')),  # Y D+F D
  (r'(x|context|final_mod|proj_out|\w+/fc2)/bias', P()),
  (rf'({_DOUBLE}/(image|text)_(mod|out|mlp/fc2)|{_SINGLE}/(mod|out))/bias',
   P()),
)  # fmt: skip
