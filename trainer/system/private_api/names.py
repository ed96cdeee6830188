"""List the private names that this project needs, each with the reason and with what to do without it."""

from typing import NamedTuple


class PrivateName(NamedTuple):
    """A name that its library does not document.

    Attributes:
        name: dotted, as it is imported, down to an attribute of a class.
        module: the module of this package that uses it.
        needed_for: completes "It is needed ...".
        otherwise: what to do when a version no longer has it.
        arguments: those of the function that are needed by name.
    """

    name: str
    module: str
    needed_for: str
    otherwise: str
    arguments: tuple[str, ...] = ()


_NODE = "keras.src.ops.node.Node"
_CLONE = "collect the calls from the `call_function` of keras.models.clone_model, which gets each one in order"
_CONTEXT = "tensorflow.python.eager.context"
_SLURM = "tensorflow.python.distribute.cluster_resolver.slurm_cluster_resolver"
_LITE = "tensorflow.lite"
_FLATBUFFERS = "generate the classes from TensorFlow's schema.fbs with flatc, and pack them with flatbuffers"

PRIVATE_NAMES = (
    PrivateName(
        "keras.Model._nodes_by_depth",
        "keras_graph",
        "to read which layer of a network was called on which tensors, and in what order",
        _CLONE,
    ),
    PrivateName(f"{_NODE}.operation", "keras_graph", "to tell which layer a call is of", _CLONE),
    PrivateName(f"{_NODE}.input_tensors", "keras_graph", "to tell what a layer was called on", _CLONE),
    PrivateName(f"{_NODE}.outputs", "keras_graph", "to tell what a call returned", _CLONE),
    PrivateName(f"{_NODE}.arguments", "keras_graph", "to see whether a call had training=False", _CLONE),
    PrivateName(
        "keras.Layer._flatten_layers",
        "keras_graph",
        "to find the layers inside composite layers, such as the blocks of keras-hub, which have no `layers`",
        "walk over `layers` of models, and over the attributes of other layers that are layers",
    ),
    PrivateName(
        "keras.layers.BatchNormalization._moments",
        "keras_graph",
        "to take batch statistics over all replicas in the middle of the layer",
        "write the layer's `call` out, 30 lines, in trainer/model/layers/batch_norm.py",
    ),
    PrivateName(
        "keras.layers.BatchNormalization._reduction_axes",
        "keras_graph",
        "to take batch statistics over the axes that the layer takes them over",
        "use all axes but `axis`",
    ),
    PrivateName(
        "keras.random.SeedGenerator.state.path",
        "keras_graph",
        "to tell the seed of a random layer, which no checkpoint holds, from a weight by the end of its path",
        "collect `state` of all seed generators that are attributes of layers",
    ),
    PrivateName(
        "keras.StatelessScope",
        "keras_scopes",
        "to build a network whose variables take no memory, with an argument that is not documented",
        "build the network under keras.device('meta'), or in a child process with a limit on its memory",
        arguments=("initialize_variables",),
    ),
    *(
        PrivateName(
            f"keras.src.backend.common.global_state.{name}",
            "keras_scopes",
            "to keep Keras from giving values, within its next scope, to variables that were built without memory",
            "look where keras.StatelessScope keeps the variables that it did not initialize",
        )
        for name in ("get_global_attribute", "set_global_attribute", "uninitialized_variables")
    ),
    PrivateName(
        "keras.src.saving.serialization_lib.SafeModeScope",
        "keras_scopes",
        "to copy layers of a file from elsewhere without building a Lambda",
        "keras.config.enable_unsafe_deserialization, which cannot be undone, in a child process",
    ),
    PrivateName(
        "keras.src.utils.file_utils.get_file",
        "keras_scopes",
        "to learn the names of the weight files that keras.applications would download (scripts/measure_backbones.py)",
        "patch the `get_file` of whatever module keras.applications now imports it from",
    ),
    PrivateName(
        "tensorflow.python.framework.convert_to_constants.convert_variables_to_constants_v2",
        "tensorflow_graph",
        "to freeze a graph before conversion: without it LiteRT's converter writes files that answer NaN",
        "see whether tf.lite.TFLiteConverter.from_concrete_functions still needs it",
    ),
    PrivateName(
        "tensorflow.core.protobuf.saved_model_pb2.SavedModel",
        "tensorflow_graph",
        "to read the signatures of a SavedModel without loading it",
        "generate the class from TensorFlow's saved_model.proto with protoc",
    ),
    PrivateName(
        "tensorflow.core.protobuf.fingerprint_pb2.FingerprintDef",
        "tensorflow_graph",
        "to write an identifier into fingerprint.pb that follows from the model, so that equal exports are equal",
        "generate the class from TensorFlow's fingerprint.proto with protoc",
    ),
    PrivateName(
        f"{_LITE}.python.convert_phase.ConverterError",
        "tensorflow_lite",
        "to tell a network that the converter cannot take from an error of ours",
        "catch what tf.lite.TFLiteConverter.convert raises then",
    ),
    PrivateName(
        f"{_LITE}.python.util.modify_model_io_type",
        "tensorflow_lite",
        "to give an int8 file uint8 inputs and outputs after its calibration",
        "set inference_input_type of tf.lite.TFLiteConverter, and calibrate with it",
    ),
    *(
        PrivateName(f"{_LITE}.{name}", "tensorflow_lite", "to read and change a TFLite file", _FLATBUFFERS)
        for name in (
            "python.schema_py_generated.BufferT",
            "python.schema_py_generated.BuiltinOperator",
            "python.schema_py_generated.MetadataT",
            "python.schema_py_generated.OperatorCodeT",
            "python.schema_py_generated.OperatorT",
            "python.schema_py_generated.TensorType",
            "tools.flatbuffer_utils.convert_bytearray_to_object",
            "tools.flatbuffer_utils.convert_object_to_bytearray",
        )
    ),
    PrivateName(f"{_CONTEXT}.context", "tensorflow_cluster", "to reach the coordination service", "see the next"),
    PrivateName(
        f"{_CONTEXT}.Context.configure_coordination_service",
        "tensorflow_cluster",
        "to give up on a worker that does not come: TensorFlow's own settings wait an hour",
        "see whether tf.distribute or tf.config has such settings by now",
        arguments=(
            "service_type",
            "service_leader",
            "cluster_register_timeout_in_ms",
            "heartbeat_timeout_in_ms",
            "shutdown_barrier_timeout_in_ms",
            "coordinated_jobs",
        ),
    ),
    PrivateName(
        "tensorflow.compiler.xla.tsl.protobuf.coordination_config_pb2.CoordinatedJob",
        "tensorflow_cluster",
        "to name the workers to the coordination service",
        "find the module of this protocol buffer, which has moved before",
    ),
    *(
        PrivateName(f"{_SLURM}.{name}", "tensorflow_cluster", "to read SLURM's lists", "write it out, 30 lines")
        for name in ("expand_hostlist", "expand_tasks_per_node")
    ),
    PrivateName(
        "horovod.runner.http.http_server.RendezvousServer",
        "horovod_server",
        "to let workers find each other that our launcher starts, guards and replaces",
        "start the job with horovodrun, which gives up a whole host with one worker",
    ),
    PrivateName(
        "horovod.runner.http.http_server.RendezvousServer._httpd",
        "horovod_server",
        "to close the socket that `stop` leaves open",
        "see whether `stop` closes it by now",
    ),
    PrivateName(
        "horovod.runner.common.util.hosts.SlotInfo",
        "horovod_server",
        "to tell the server which workers there are",
        "pass what RendezvousServer.init wants by now",
        arguments=("hostname", "rank", "size", "local_rank", "local_size", "cross_rank", "cross_size"),
    ),
)
