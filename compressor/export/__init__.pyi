from .lowering import lower_to_onnx as lower_to_onnx
from .onnx_file import export_onnx as export_onnx
from .onnx_file import session as session
from .profiling import layer_times as layer_times
