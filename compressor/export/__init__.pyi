from .lowering import IN_MULTIPLE as IN_MULTIPLE
from .lowering import MIN_OUT as MIN_OUT
from .lowering import lower_to_onnx as lower_to_onnx
from .onnx_file import export_onnx as export_onnx
from .onnx_file import session as session
from .profiling import Executed as Executed
from .profiling import executed_in as executed_in
from .profiling import layer_times as layer_times
