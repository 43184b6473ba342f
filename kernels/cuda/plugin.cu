/*
 * plugin.cu
 *	  The entry points of qwen_cuda.so: which devices there are, and how one is
 *	  opened; the table of their operations.
 *
 * A machine without a driver is an ordinary answer (no devices, and why),
 * because the plug-in may well be installed on machines that have no GPU.
 *
 * A device is a queue and a budget on a GPU, not the GPU itself: one GPU may be
 * opened several times, and its memory belongs to the engine's plan.
 */
#include "kernels/cuda/cuda_device.h"

#include <stdio.h>

/* Hidden is the default of the build; these are what it is for. */
#define EXPORTED extern "C" __attribute__((visibility("default")))

/* The oldest kind of GPU that has bfloat16 in its matrix units and copies to shared memory behind a thread's back. */
#define LEAST_CAPABILITY 80

/* ---- which devices there are ---- */

static void
explain(char *why, size_t why_size, const char *what, cudaError_t error)
{
	snprintf(why, why_size, "%s: %s", what, cudaGetErrorString(error));
	/* The error would otherwise be reported again by the next call. */
	(void) cudaGetLastError();
}

/* The runtime calls a missing driver an old one. */
static void
explain_none(char *why, size_t why_size, cudaError_t error)
{
	int driver = 0;

	if (cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0)
		snprintf(why, why_size, "no CUDA devices: no NVIDIA driver is loaded");
	else
		explain(why, why_size, "no CUDA devices", error);
}

static bool
describe(int index, qwen_cuda_device *device, char *why, size_t why_size)
{
	cudaDeviceProp properties;
	size_t free_bytes;
	size_t total_bytes;
	cudaError_t error = cudaGetDeviceProperties(&properties, index);

	if (error == cudaSuccess)
		error = cudaSetDevice(index);
	if (error == cudaSuccess)
		error = cudaMemGetInfo(&free_bytes, &total_bytes);
	if (error != cudaSuccess)
	{
		char what[32];

		snprintf(what, sizeof(what), "device %d", index);
		explain(why, why_size, what, error);
		return false;
	}
	snprintf(device->name, sizeof(device->name), "%s", properties.name);
	device->index = index;
	device->capability = properties.major * 10 + properties.minor;
	device->total = total_bytes;
	device->free = free_bytes;
	return true;
}

EXPORTED int
qwen_cuda_abi(void)
{
	return QWEN_CUDA_ABI;
}

EXPORTED int
qwen_cuda_devices(qwen_cuda_device *devices, int max, char *why, size_t why_size)
{
	int visible = 0;
	int filled = 0;
	int silent = 0;
	cudaError_t error = cudaGetDeviceCount(&visible);

	if (why_size > 0)
		why[0] = '\0';
	if (error != cudaSuccess)
	{
		explain_none(why, why_size, error);
		return 0;
	}
	if (visible == 0)
		snprintf(why, why_size, "no CUDA devices: none is visible");
	for (int i = 0; i < visible; i++)
	{
		if (filled == max)
			break;
		if (describe(i, &devices[filled], why, why_size))
			filled++;
		else
			silent++;
	}
	return visible - silent;
}

/* ---- a device's life ---- */

static size_t
scratch_bytes(const qwen_device *, const qwen_needs *needs)
{
	return cuda_scratch_of(needs).bytes;
}

/* Also what was begun of a device that could not be opened. Errors have been told when they came. */
static void
close_device(qwen_device *dev)
{
	cuda_device *d = cuda_of(dev);

	(void) cudaSetDevice(d->index);
	if (d->stream)
		(void) cudaStreamSynchronize(d->stream);
	cuda_comm_leave(dev);
	cuda_graphs_free(d->graphs);
	cuda_blas_free(d->blas);
	cuda_steps_free(d->steps);
	cuda_staging_free(d->staging);
	if (d->event)
		(void) cudaEventDestroy(d->event);
	if (d->stream)
		(void) cudaStreamDestroy(d->stream);
	(void) cudaGetLastError();
	delete d;
	delete dev;
}

static qwen_ops
make_ops(void)
{
	qwen_ops ops = qwen_ops();

	ops.name = "cuda";
	ops.close = close_device;

	ops.alloc = cuda_alloc;
	ops.free = cuda_free;
	ops.upload = cuda_upload;
	ops.download = cuda_download;
	ops.synchronize = cuda_synchronize;

	ops.join = cuda_join;
	ops.sum = cuda_sum;
	ops.sum_resid = cuda_sum_resid;
	ops.copy = cuda_copy;

	ops.loop = cuda_loop;

	ops.matrix_dtype = cuda_matrix_dtype;
	ops.matrix_bytes = cuda_matrix_bytes;
	ops.matrix_upload = cuda_matrix_upload;
	ops.vector_upload = cuda_vector_upload;
	ops.kv_dtype = cuda_kv_dtype;
	ops.kv_block_bytes = cuda_kv_block_bytes;
	ops.scratch_bytes = scratch_bytes;

	ops.step = cuda_step;
	ops.segment_begin = cuda_segment_begin;
	ops.segment_end = cuda_segment_end;

	ops.embed = cuda_embed;
	ops.add_rmsnorm = cuda_add_rmsnorm;
	ops.add = cuda_add;
	ops.linear = cuda_linear;
	ops.qk_rope_store = cuda_qk_rope_store;
	ops.attention = cuda_attention;
	ops.swiglu = cuda_swiglu;
	ops.gather = cuda_gather;
	ops.logits = cuda_logits;
	return ops;
}

static const qwen_ops cuda_ops = make_ops();

/* The GPU of that index, made the thread's current one, and what the kernels must know of it. */
static bool
choose_gpu(cuda_device *d, const char *name, char *err, size_t errlen)
{
	cudaDeviceProp properties;
	cudaError_t error = cudaGetDeviceProperties(&properties, d->index);

	if (error == cudaSuccess)
		error = cudaSetDevice(d->index);
	if (error == cudaSuccess)
		error = cudaDeviceGetAttribute(&d->shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, d->index);
	if (error != cudaSuccess)
	{
		explain(err, errlen, name, error);
		return false;
	}
	d->capability = properties.major * 10 + properties.minor;
	d->n_sms = properties.multiProcessorCount;
	if (d->capability >= LEAST_CAPABILITY)
		return true;
	snprintf(err, errlen, "%s (%s) has compute capability %d.%d, and %d.%d is the least", name, properties.name,
			 properties.major, properties.minor, LEAST_CAPABILITY / 10, LEAST_CAPABILITY % 10);
	return false;
}

/* What a device has beside its memory. */
static bool
equip(cuda_device *d, const char *name, char *err, size_t errlen)
{
	/* other streams of the process are none of its business */
	cudaError_t error = cudaStreamCreateWithFlags(&d->stream, cudaStreamNonBlocking);

	if (error == cudaSuccess)
		error = cudaEventCreateWithFlags(&d->event, cudaEventDisableTiming);
	if (error == cudaSuccess && (d->staging = cuda_staging_new()) == NULL)
		error = cudaGetLastError();
	if (error != cudaSuccess)
	{
		explain(err, errlen, name, error);
		return false;
	}
	d->steps = cuda_steps_new();
	d->graphs = cuda_graphs_new();
	d->blas = cuda_blas_new();
	if (d->blas == NULL)
		snprintf(err, errlen, "%s: cuBLASLt cannot be used", name);
	return d->blas != NULL;
}

static bool
can_open(int index, const char *name, qwen_dtype act, char *err, size_t errlen)
{
	int visible = 0;
	cudaError_t error = cudaGetDeviceCount(&visible);

	if (error != cudaSuccess)
		explain_none(err, errlen, error);
	else if (index < 0 || index >= visible)
		snprintf(err, errlen, "%s is not there: %d GPU%s visible", name, visible, visible == 1 ? " is" : "s are");
	else if (act != QWEN_F32 && act != QWEN_F16 && act != QWEN_BF16)
		snprintf(err, errlen, "%s cannot compute in %d", name, (int) act);
	else
		return true;
	return false;
}

EXPORTED qwen_device *
qwen_cuda_open(int index, const char *name, qwen_dtype act, char *err, size_t errlen)
{
	qwen_device *dev;
	cuda_device *d;

	if (!can_open(index, name, act, err, errlen))
		return NULL;
	dev = new qwen_device();
	d = new cuda_device();
	snprintf(dev->name, sizeof(dev->name), "%s", name);
	dev->ops = &cuda_ops;
	dev->act = act;
	dev->act_bytes = act == QWEN_F32 ? sizeof(float) : sizeof(uint16_t);
	dev->n_threads = 1;
	dev->priv = d;
	d->index = index;
	if (choose_gpu(d, name, err, errlen) && equip(d, name, err, errlen))
		return dev;
	close_device(dev);
	return NULL;
}
