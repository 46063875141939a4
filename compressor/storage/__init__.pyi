from .checkpoints import Checkpoints as Checkpoints
from .code import code_digest as code_digest
from .code import code_digests as code_digests
from .files import digest as digest
from .files import digest_json as digest_json
from .files import write_bytes as write_bytes
from .files import write_json as write_json
from .files import write_text as write_text
