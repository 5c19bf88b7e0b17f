"""Stand-ins for what is not on this machine: TensorRT of three versions, trtexec, and NVIDIA's driver."""
