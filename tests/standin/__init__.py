"""A stand-in for the CUDA driver, so that the adapters run on a machine without a GPU.

The simulated machine plays the hardware; what the adapters call of torch, CuPy, Numba and
cuda.bindings is replaced by functions that behave as the real ones are documented to, traps
included. gpufut's own code is the real one, and so is as much of the frameworks as works without a
driver: tensors, arrays and their types.

driver       the driver's state: contexts, streams, events, addresses; and its C functions
bindings     cuda.bindings.runtime
torch_cuda   torch.cuda, and tensors on `cuda`
cupy_cuda    cupy.cuda, and arrays
numba_cuda   numba.cuda, and device arrays
world        the worlds that tests run in

What it does not play: kernels that are compiled, default streams that block the host, several
processes.
"""
