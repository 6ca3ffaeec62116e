"""Faults in the adapters of torch, CuPy, Numba, the protocols of array exchange, and the machine.

Tests kill them without a GPU: those of the adapters, and the contract on the stand-in.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from tests.mutants.mutant import Mutant

__all__ = ["MUTANTS"]

_registry = partial(Mutant, file="gpufut/frameworks/__init__.py")
_torch = partial(Mutant, file="gpufut/frameworks/torch.py", device="standin")
_cupy = partial(Mutant, file="gpufut/frameworks/cupy.py", device="standin")
_numba = partial(Mutant, file="gpufut/frameworks/numba.py", device="standin")
_interface = partial(Mutant, file="gpufut/frameworks/interface.py", device="standin")
_sim = partial(Mutant, file="gpufut/frameworks/sim.py")

MUTANTS: Final = (
    # -- the table of frameworks -------------------------------------------------------------------
    _registry(
        name="framework_is_loaded_to_be_asked",
        rule="C7",
        why="a program that uses one library loads all others with its first hand-off",
        old="        if not module or sys.modules.get(sign) is None:\n",
        new="        if not module:\n",
        tests=("test_hidden_modules_are_not_missed",),
    ),
    _registry(
        name="framework_that_comes_later_is_not_seen",
        rule="C8",
        why="what was loaded at the first hand-off is all that there will ever be",
        old="    if known is not None and known[0] == len(sys.modules):\n",
        new="    if known is not None:\n",
        tests=("test_adapters_are_asked_once_as_long_as_no_module_comes",),
    ),
    _registry(
        name="framework_that_comes_meanwhile_is_not_seen",
        rule="C8",
        why="a framework that is imported while adapters are asked is never found",
        old="        _served[device_type] = count, tuple(found)\n",
        new="        _served[device_type] = len(sys.modules), tuple(found)\n",
        tests=("test_a_framework_that_comes_while_others_are_asked_is_found_the_next_time",),
    ),
    _registry(
        name="device_that_comes_later_is_not_seen",
        rule="C8",
        why="a library works on a new type of device, and its framework is not found",
        old="on_new_devices(_served.clear)\n",
        new="",
        tests=(
            "test_adapters_are_asked_again_when_devices_come_and_when_handles_become_meaningless",
        ),
    ),
    _registry(
        name="frameworks_of_the_parent_serve_its_child",
        rule="C21",
        why="a forked child is told of frameworks that it cannot use",
        old="on_reset(_served.clear)\n",
        new="",
        tests=(
            "test_adapters_are_asked_again_when_devices_come_and_when_handles_become_meaningless",
        ),
    ),
    _registry(
        name="framework_that_wakes_up_is_not_seen",
        rule="C8",
        why="an adapter that has none now is not asked again where another one has some",
        old="""
        elif adapter is not None or sign in sys.modules:  # hidden, or in the middle of its import
""",
        new="""
        elif adapter is None and sign in sys.modules:
""",
        tests=("test_an_adapter_that_has_none_now_is_asked_again",),
    ),
    _registry(
        name="framework_that_was_hidden_is_not_seen",
        rule="C8",
        why="a module that was hidden and comes out is never found",
        old="""
        elif adapter is not None or sign in sys.modules:  # hidden, or in the middle of its import
""",
        new="""
        elif adapter is not None:
""",
        tests=("test_a_module_that_was_hidden_is_found_when_it_comes_out",),
    ),
    _registry(
        name="adapters_are_asked_at_every_hand_off",
        rule="C8",
        why="each hand-off asks all adapters again, which takes as long as the rest of it",
        old="    if found and is_final:\n",
        new="    if False:\n",
        tests=("test_adapters_are_asked_once_as_long_as_no_module_comes",),
    ),
    _registry(
        name="stream_object_may_go",
        rule="a destroyed stream's handle may be given to another stream",
        why="a handle in the books of gpufut means another stream, or none",
        old="    _kept_streams[key] = stream\n",
        new="",
        tests=("test_a_stream_object_that_was_used_stays_alive",),
    ),
    _registry(
        name="stream_objects_are_kept_without_end",
        rule="C18",
        why="a program that makes streams for ever keeps all of them",
        old="    while len(_kept_streams) > _MOST_KEPT:\n",
        new="    while False:\n",
        tests=("test_of_streams_without_end_those_that_were_used_last_are_kept",),
    ),
    # -- torch -------------------------------------------------------------------------------------
    _torch(
        name="torch_stays_on_the_streams_device",
        rule="C14: setting torch's stream switches the device",
        why="after a callback the thread launches on another device",
        old="""
        if leaves:
            torch._C._cuda_setDevice(current)
""",
        new="""
""",
        tests=("test_streams_are_set_on_all_devices_and_the_current_device_stays",),
    ),
    _torch(
        name="torch_makes_a_context_on_its_way_back",
        rule="C6: selecting a device makes a context",
        why="going back to a current device that nobody has used makes a context there",
        old="        if leaves and not driver.has_context(current):\n",
        new="        if False:\n",
        tests=("test_to_set_a_stream_makes_no_context_on_the_current_device",),
    ),
    _torch(
        name="torch_forgets_the_device_it_remembered",
        rule="C14: torch's device guards are lazy",
        why="a device that is current in torch's books only is not current any more",
        old="""
            if torch._C._cuda_getDevice() != current:
                torch._C._cuda_maybeExchangeDevice(current)
""",
        new="""
""",
        tests=("test_a_current_device_that_only_torch_remembers_is_remembered_again",),
    ),
    _torch(
        name="torch_gets_one_stream_back",
        rule="C14",
        why="on the other devices torch stays on streams of the pool",
        old="""
        self._set(*cast("_CudaStreams", saved))
""",
        new="""
        current, before = cast("_CudaStreams", saved)
        self._set(current, before[:1])
""",
        tests=("test_streams_are_set_on_all_devices_and_the_current_device_stays",),
    ),
    _torch(
        name="torch_is_asked_before_it_was_used",
        rule="C6",
        why="asking a sleeping torch for its stream makes a context on the current device",
        old="""
            if not torch.cuda.is_initialized():
                return _LEGACY
            self._is_awake = True
""",
        new="""
            self._is_awake = True
""",
        tests=("test_before_cuda_is_initialised_the_current_stream_is_the_legacy_one",),
    ),
    _torch(
        name="torch_is_asked_in_a_forked_child",
        rule="C21",
        why="a forked child asks torch for a stream of a context that it does not have",
        old="        runtimes.on_reset(self._look_again)\n",
        new="",
        tests=("test_in_a_forked_child_torch_is_not_asked_until_it_is_initialised_again",),
    ),
    _torch(
        name="torchs_default_stream_keeps_its_number",
        rule="C8: 0 and 1 are one stream",
        why="torch's default stream counts as another one than CuPy's",
        old="        return handle or _LEGACY\n",
        new="        return handle\n",
        tests=("test_the_current_stream_is_the_raw_handle",),
    ),
    _torch(
        name="torch_is_given_the_id_1",
        rule="1 is no id of torch's",
        why="torch takes the legacy stream's handle for one of its pool, and fails",
        old="    return _LEGACY_OF_TORCH if handle == _LEGACY else handle",
        new="    return handle",
        tests=("test_streams_are_set_on_all_devices_and_the_current_device_stays",),
    ),
    _torch(
        name="torchs_streams_go_by_their_ids",
        rule="C2: a stream's id is not its handle",
        why="a stream of torch's pool is recorded under a number that names no stream",
        old="        return Device(kind, index), named.cuda_stream or _LEGACY\n",
        new="        return Device(kind, index), stream.stream_id or _LEGACY\n",
        tests=("test_a_cuda_stream_is_known_by_its_handle",),
    ),
    _torch(
        name="torch_is_told_of_imported_memory",
        rule="C17: record_stream passes over memory that is not torch's",
        why="memory that came by DLPack goes while the consumer still reads it",
        old="""
_is_resizable: Final = cast(
    "Callable[[torch.UntypedStorage], bool]", torch.UntypedStorage.resizable
)
""",
        new="""
def _is_resizable(storage: object) -> bool:
    return True
""",
        tests=("test_imported_memory_is_held",),
    ),
    _torch(
        name="torch_is_told_of_imported_memory_on_the_short_cut",
        rule="C17: record_stream passes over memory that is not torch's",
        why="memory that came by DLPack goes while the consumer still reads it",
        old="""
                and not (tensor.requires_grad or tensor.is_cpu)
                and (self._owns or self._find_owner_test())(tensor.untyped_storage())
""",
        new="""
                and not (tensor.requires_grad or tensor.is_cpu)
""",
        tests=("test_imported_memory_is_held",),
    ),
    _torch(
        name="torch_is_told_of_memory_that_it_sent_away",
        rule="C17: record_stream passes over memory that is not torch's",
        why="memory that was sent to another process goes while the consumer still reads it",
        old="        return lambda storage: cast(bool, has_deleter(storage._cdata))\n",
        new="        return _is_resizable\n",
        tests=("test_memory_that_has_left_the_allocator_is_held_by_the_allocators_own_test",),
    ),
    _torch(
        name="pluggable_allocator_is_told",
        rule="C17: pluggable allocators may not hear of streams",
        why="memory of an allocator without that hook goes while the consumer still reads it",
        old='            if "MallocAsync" not in backend():\n',
        new="            if False:\n",
        tests=("test_memory_of_a_pluggable_allocator_is_held",),
    ),
    _torch(
        name="torch_keeps_memory_for_a_threads_own_stream",
        rule="C17: handle 2 names a stream of each thread",
        why="the thread that frees the memory records on its own default stream",
        old="        number = handle if handle > 2 else _LEGACY_OF_TORCH\n",
        new="        number = handle if handle > 1 else _LEGACY_OF_TORCH\n",
        tests=("test_memory_read_on_a_threads_own_default_stream_is_kept_for_the_legacy_one",),
    ),
    _torch(
        name="parts_of_a_tensor_are_not_told",
        rule="C17",
        why="a sparse tensor's indices and values go while the consumer still reads them",
        old="                for part in parts:\n",
        new="                for part in parts[:1]:\n",
        tests=("test_of_a_sparse_tensor_the_parts_are_told",),
    ),
    _torch(
        name="gradient_is_not_kept",
        rule="C17",
        why="a parameter's gradient goes while the consumer still reads it",
        old="            self._tell(tensor.grad, recorded, unheard)\n",
        new="            pass\n",
        tests=("test_the_gradient_of_a_leaf_is_kept_with_it",),
    ),
    _torch(
        name="gradient_is_not_kept_on_the_short_cut",
        rule="C17",
        why="the gradient of a tensor goes while the consumer still reads it",
        old="                and not (tensor.requires_grad or tensor.is_cpu)\n",
        new="                and not tensor.is_cpu\n",
        tests=("test_the_gradient_of_a_leaf_is_kept_with_it",),
    ),
    _torch(
        name="shared_memory_counts_as_ours_alone",
        rule="C17",
        why="imported memory goes although another tensor still uses it",
        old="    return bool(_use_count(storage._cdata) > 1)",
        new="    return bool(_use_count(storage._cdata) > 2)",
        tests=("test_memory_is_shared_as_long_as_any_tensor_refers_to_it",),
    ),
    _torch(
        name="looking_at_a_tensor_wakes_cuda",
        rule="C7",
        why="a tensor on the host makes a context, because it is asked whether it is pinned",
        old="""
        return tensor.is_cpu and not (torch.cuda.is_initialized() and tensor.is_pinned())""",
        new="""
        return tensor.is_cpu and not tensor.is_pinned()""",
        tests=("test_pinned_memory_is_recognised_only_once_cuda_is_initialised",),
    ),
    _torch(
        name="pinned_tensors_are_host_values",
        rule="C12",
        why="the host reads what an asynchronous copy has not written yet",
        old="""
        return tensor.is_cpu and not (torch.cuda.is_initialized() and tensor.is_pinned())""",
        new="""
        return tensor.is_cpu""",
        tests=("test_pinned_memory_is_recognised_only_once_cuda_is_initialised",),
    ),
    _torch(
        name="torch_reads_ordinary_memory_later",
        rule="C17: a pageable source may be read at any time",
        why="the device copies from memory that its user has changed meanwhile",
        old="            if not source.is_pinned():\n",
        new="            if False:\n",
        tests=("test_to_device_has_the_device_read_a_copy_of_ordinary_memory",),
    ),
    _torch(
        name="torch_copies_to_the_host_blocking",
        rule="C12",
        why="the copy to the host stops the thread until the device has come to it",
        old="else target.copy_(source, non_blocking=True)\n",
        new="else target.copy_(source)\n",
        tests=("test_to_host_copies_into_pinned_memory_without_waiting",),
    ),
    _torch(
        name="accelerator_stays_on_the_streams_device",
        rule="C14: setting torch's stream switches the device",
        why="after a callback the thread launches on another device",
        old="""
            _set_current_stream(self._streams[device, streams[device]])
        if before and before[-1].device_index != current:
""",
        new="""
            _set_current_stream(self._streams[device, streams[device]])
        if False:
""",
        tests=("test_elsewhere_streams_are_set_and_restored_alike",),
    ),
    _torch(
        name="accelerator_stays_on_the_streams_device_on_its_way_back",
        rule="C14: setting torch's stream switches the device",
        why="after a callback the thread launches on another device",
        old="""
            _set_current_stream(stream)
        if before and before[-1].device_index != current:
""",
        new="""
            _set_current_stream(stream)
        if False:
""",
        tests=("test_elsewhere_streams_are_set_and_restored_alike",),
    ),
    # -- CuPy --------------------------------------------------------------------------------------
    _cupy(
        name="cupys_stream_is_used_and_not_entered",
        rule="C14: CuPy's use() is undone by a with block inside",
        why="after the first `with stream:` of a callback, CuPy is on the default stream",
        old="""
        self.stream.__enter__()
        self.is_entered = True
""",
        new="""
        self.stream.use()
""",
        tests=("test_a_with_block_inside_comes_back_to_our_stream",),
    ),
    _cupy(
        name="cupys_stream_belongs_to_any_device",
        rule="C14: CuPy applies what it restores to the current device",
        why="a with block that ends on another device sets the wrong device's stream",
        old="    stream.device_id = device\n",
        new="",
        tests=("test_a_with_block_that_ends_on_another_device_comes_back_to_our_stream",),
    ),
    _cupy(
        name="cupys_stream_is_left_on_the_wrong_device",
        rule="C14: CuPy applies what it restores to the current device",
        why="after a callback CuPy stays on a stream of the pool on one device",
        old="        _on(step.device, step.leave)",
        new="        step.leave()",
        tests=("test_what_was_current_is_restored_whatever_happens_inside",),
    ),
    _cupy(
        name="cupy_stays_on_the_users_device",
        rule="C14",
        why="a callback that switches the device leaves it switched",
        old="            cuda.runtime.setDevice(before.device)\n",
        new="            pass\n",
        tests=("test_what_was_current_is_restored_whatever_happens_inside",),
    ),
    _cupy(
        name="cupy_makes_a_context_on_its_way_back",
        rule="C6: selecting a device makes a context",
        why="going back to a current device that nobody has used makes a context there",
        old="""
    return driver.on(device, function, *arguments)
""",
        new="""
    with cuda.Device(device):
        return function(*arguments)
""",
        tests=("test_no_context_is_made_on_the_device_that_happens_to_be_current",),
    ),
    _cupy(
        name="cupys_default_stream_is_always_the_legacy_one",
        rule="C2: what CuPy calls 0 in its per-thread mode",
        why="the event is recorded on the legacy stream, and the work is on the thread's own",
        old="        self._default: Final = 2 if own else 1\n",
        new="        self._default: Final = 1\n",
        tests=("test_in_the_per_thread_mode_the_default_stream_is_the_threads_own",),
    ),
    _cupy(
        name="cupys_memory_is_not_held",
        rule="C17: CuPy has no record_stream",
        why="CuPy's pool gives memory away while the consumer still reads it",
        old="        return Owner(_memory_of(array))\n",
        new="        return None\n",
        tests=("test_c17_memory_is_not_reused_while_a_consumer_still_reads_it",),
    ),
    _cupy(
        name="cupys_array_is_held_and_not_its_memory",
        rule="C17",
        why="memory goes although a view of it lives that somebody else may still use",
        old="        return array.data.mem\n",
        new="        return array.data\n",
        tests=("test_arrays_that_share_memory_have_one_owner",),
    ),
    _cupy(
        name="cupys_stream_may_go",
        rule="a destroyed stream's handle may be given to another stream",
        why="CuPy destroys a stream that a value was recorded on",
        old="""
        keep_stream(cuda_device(device), handle, stream)
        return handle
""",
        new="""
        return handle
""",
        tests=("test_the_stream_of_a_hand_off_may_be_dropped_at_once",),
    ),
    _cupy(
        name="cupy_without_a_driver_stands_in_the_way",
        rule="C7",
        why="a CuPy that cannot use the driver fails all futures, of other libraries too",
        old="""
            except RuntimeError:
                return None
""",
        new="""
            except ZeroDivisionError:
                return None
""",
        tests=("test_a_cupy_that_cannot_use_the_driver_is_left_out",),
    ),
    _cupy(
        name="cupy_that_finds_no_driver_is_given_up",
        rule="C8",
        why="a CuPy that found no device the first time is never asked again",
        old="        return (_CUPY,) if self._works else None\n",
        new="        return (_CUPY,) if self._works else ()\n",
        tests=("test_a_cupy_that_finds_no_device_is_asked_again",),
    ),
    _cupy(
        name="cupys_copy_does_not_wait_for_its_target",
        rule="C17: CuPy's pool is ordered by the stream of the allocation",
        why="a copy between devices writes into memory that is still being read",
        old="            self._order(of, after=device)\n",
        new="",
        tests=("test_a_copy_between_devices_comes_after_both_streams_and_before_the_rest",),
    ),
    _cupy(
        name="cupys_target_does_not_wait_for_the_copy",
        rule="C8",
        why="what follows on the target's device runs before the copy has landed",
        old="            self._order(device, after=of)\n",
        new="",
        tests=("test_a_copy_between_devices_comes_after_both_streams_and_before_the_rest",),
    ),
    _cupy(
        name="cupys_copy_to_the_host_is_on_the_default_stream",
        rule="C12: non-blocking streams ignore the legacy stream",
        why="the copy reads what the array's stream has not written yet",
        old="""
                self.current_stream(source.data.device_id),
            )
        return target""",
        new="""
                1,
            )
        return target""",
        tests=("test_a_copy_to_the_host_is_pinned_and_on_the_arrays_stream",),
    ),
    # -- Numba -------------------------------------------------------------------------------------
    _numba(
        name="numbas_current_stream_is_the_default",
        rule="C14: Numba has no current stream",
        why="what Numba launches in a callback is recorded on a stream where it is not",
        old="        return _current.streams.get(device, self._default)\n",
        new="        return self._default\n",
        tests=("test_the_current_stream_is_what_gpufut_made_current_and_else_the_default",),
    ),
    _numba(
        name="numbas_default_stream_is_always_the_legacy_one",
        rule="C2: what Numba calls 0 in its per-thread mode",
        why="the event is recorded on the legacy stream, and the work is on the thread's own",
        old="        self._default: Final = 2 if own else 1\n",
        new="        self._default: Final = 1\n",
        tests=("test_in_the_per_thread_mode_the_default_stream_is_the_threads_own",),
    ),
    _numba(
        name="numbas_current_streams_belong_to_nobody",
        rule="C8, C14: current streams belong to threads",
        why="a callback in one thread makes its stream current for Numba in all",
        old="class _Current(threading.local):",
        new="class _Current:",
        tests=("test_current_streams_belong_to_a_thread",),
    ),
    _numba(
        name="numba_does_not_take_our_streams",
        rule="C14: Numba takes streams of its own class alone",
        why="the stream of a callback cannot be given to a kernel",
        old="        return () if _IS_SIMULATED else (_cudadrv.Stream,)\n",
        new="        return ()\n",
        tests=("test_numba_takes_our_streams_for_its_own",),
    ),
    _numba(
        name="array_view_is_where_its_context_is",
        rule="C2: a view's context is the one that was current when it was made",
        why="an imported array is taken for one of another device",
        old="""
        if not isinstance(owner, _cudadrv.MemoryPointer) or not owner.is_managed:
""",
        new="""
        if False:
""",
        tests=("test_a_view_of_foreign_memory_is_where_the_driver_says",),
    ),
    _numba(
        name="numbas_views_do_not_count",
        rule="C17",
        why="memory goes although a view of it lives that somebody else may still use",
        old="    return bool(memory.refct > shares)",
        new="    return False",
        tests=("test_a_view_made_after_the_hand_over_keeps_the_memory_held",),
    ),
    _numba(
        name="numbas_memory_is_shared_for_ever",
        rule="C17: bounded, not a leak",
        why="memory is held although nobody but gpufut refers to it",
        old="    return bool(memory.refct > shares)",
        new="    return bool(memory.refct >= shares)",
        tests=("test_memory_is_held_until_the_last_view_is_gone_and_the_consumer_has_passed",),
    ),
    _numba(
        name="numba_frees_in_gpufuts_thread",
        rule="C6",
        why="the thread that sweeps frees memory of Numba's, and makes a context for it",
        old="            if self._thread is not _current.streams:\n",
        new="            if False:\n",
        tests=("test_a_thread_that_does_not_use_numba_frees_nothing",),
    ),
    _numba(
        name="numbas_copy_takes_the_arrays_own_stream",
        rule="C12",
        why="a copy to the host runs on a stream that does not wait for the value",
        old="                source.copy_to_host(target, stream=stream)\n",
        new="                source.copy_to_host(target)\n",
        tests=("test_the_arrays_own_stream_does_not_take_the_copy",),
    ),
    # -- array exchange ----------------------------------------------------------------------------
    _interface(
        name="interfaces_stream_is_not_read",
        rule="C2: the stream of __cuda_array_interface__",
        why="the work that the array itself names is not waited for",
        old="        return _handshake(array) if named is None else named\n",
        new="        return _handshake(array)\n",
        tests=("test_the_stream_in_an_interface_is_the_arrays",),
    ),
    _interface(
        name="producer_of_dlpack_is_not_asked",
        rule="C2: the DLPack handshake",
        why="an array of an unknown library goes without the order that its producer offers",
        old="        return _handshake(array) if named is None else named\n",
        new="        return named\n",
        tests=("test_a_producer_of_dlpack_orders_a_stream_of_ours",),
    ),
    _interface(
        name="producer_of_dlpack_is_asked_for_no_order",
        rule="C2: -1 in the DLPack handshake",
        why="our stream does not wait for the producer's work",
        old="    array.__dlpack__(stream=stream)  #",
        new="    array.__dlpack__(stream=-1)  #",
        tests=("test_a_producer_of_dlpack_orders_a_stream_of_ours",),
    ),
    _interface(
        name="producers_get_behind_each_other",
        rule="C16",
        why="one slow producer holds up the hand-off of all others",
        old="""
        if runtime.stream_query(device, stream):
            return stream
""",
        new="""
        return stream
""",
        tests=("test_producers_do_not_get_behind_each_other",),
    ),
    _interface(
        name="copy_blocks_for_the_interfaces_stream",
        rule="C12: consumers of __cuda_array_interface__ block the host",
        why="a copy stops the thread until the stream that the array names has finished",
        old='        self.__cuda_array_interface__ = {**interface, "stream": None}\n',
        new="        self.__cuda_array_interface__ = {**interface}\n",
        tests=("test_an_array_is_copied_by_cupy_or_else_by_numba_without_its_stream",),
    ),
    _interface(
        name="array_of_an_unknown_library_may_go",
        rule="C17",
        why="its memory goes while the consumer still reads it",
        old="        return Owner(array)\n",
        new="        return None\n",
        tests=("test_the_array_itself_is_held",),
    ),
    _interface(
        name="managed_memory_is_unknown",
        rule="C3: CUDA's numbers in DLPack",
        why="an array in managed memory is refused",
        old="_CUDA: Final = frozenset({2, 10, 13})",
        new="_CUDA: Final = frozenset({2, 10})",
        tests=("test_an_array_is_where_dlpack_says",),
    ),
    # -- the machine -------------------------------------------------------------------------------
    _sim(
        name="machines_allocator_is_not_told",
        rule="C17: record_stream forgotten",
        why="the allocator reuses memory in the order of the producer's stream alone",
        old="""
            array.record_stream(machine().stream_from_handle(stream))
            return None
""",
        new="""
            return None
""",
        tests=("test_c17_memory_is_not_reused_while_a_consumer_still_reads_it",),
    ),
    _sim(
        name="machines_copy_does_not_wait_for_its_target",
        rule="C17",
        why="a copy between devices writes into memory that is still being read",
        old="            at.wait(to.record())\n",
        new="",
        tests=("test_a_copy_on_another_device_comes_after_what_its_memory_was_used_for_before",),
    ),
    _sim(
        name="machines_target_does_not_wait_for_the_copy",
        rule="C8",
        why="what follows on the target's device runs before the copy has landed",
        old="            to.wait(at.record())\n",
        new="",
        tests=("test_a_copy_on_another_device_is_ordered_on_both",),
    ),
)
