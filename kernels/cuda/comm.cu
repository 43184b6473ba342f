/*
 * comm.cu
 *	  Sums over the devices of a stage.
 *
 * Where every device has a GPU of its own, NCCL sums: all of them at once, on
 * their own streams, nothing is waited for on the host.
 *
 * Devices that share a GPU, which NCCL does not know, and builds without NCCL
 * sum at the first device: parts on its own GPU are read where they are, those
 * of other GPUs are copied to it first; one kernel adds them in the order of
 * the shards, in float, and rounds once; the sum goes back the same ways.
 * What is copied passes through the parts of the first device's scratch memory
 * that only products use, in pieces when there is more than fits.
 */
#include "kernels/cuda/cuda_device.h"

#include <stdio.h>

#ifndef QWEN_NO_NCCL
#include <nccl.h>
#endif

/* As many as a plan can have. */
#define MAX_SHARDS 64

/* The group of a stage; each of its devices has it. */
struct cuda_comm
{
	int n;
	qwen_device *devs[MAX_SHARDS]; /* in the order of their shards */
#ifndef QWEN_NO_NCCL
	bool nccl; /* the communicators are there */
	ncclComm_t ranks[MAX_SHARDS];
#endif
};

/* ---- the group ---- */

static bool
same_group(qwen_device *const *devs, int n)
{
	const cuda_comm *comm = cuda_of(devs[0])->comm;

	for (int i = 0; i < n; i++)
		if (comm->n != n || comm->devs[i] != devs[i])
			return false;
	return true;
}

#ifndef QWEN_NO_NCCL
/* Without it the group still sums, in the other way. */
static void
start_nccl(cuda_comm *comm)
{
	int index[MAX_SHARDS];
	ncclResult_t result;

	for (int i = 0; i < comm->n; i++)
	{
		index[i] = cuda_of(comm->devs[i])->index;
		for (int j = 0; j < i; j++)
			if (index[j] == index[i])
				return;
	}
	result = ncclCommInitAll(comm->ranks, comm->n, index);
	comm->nccl = result == ncclSuccess;
	if (!comm->nccl)
		fprintf(stderr, "qwen-engine: %s: NCCL cannot be used, sums are made of copies: %s\n", comm->devs[0]->name,
				ncclGetErrorString(result));
}
#endif

bool
cuda_join(qwen_device *const *devs, int n)
{
	cuda_comm *comm;

	if (n < 1 || n > MAX_SHARDS)
		return false;
	if (cuda_of(devs[0])->comm)
		return same_group(devs, n);
	for (int i = 0; i < n; i++)
		if (!cuda_ready(devs[i]) || cuda_of(devs[i])->comm)
			return false;
	if (n == 1)
		return true;
	comm = new cuda_comm();
	comm->n = n;
	for (int i = 0; i < n; i++)
	{
		comm->devs[i] = devs[i];
		cuda_of(devs[i])->comm = comm;
	}
#ifndef QWEN_NO_NCCL
	start_nccl(comm);
#endif
	return true;
}

/* The first device that is closed ends its group, while all of them are still there. */
void
cuda_comm_leave(qwen_device *dev)
{
	cuda_comm *comm = cuda_of(dev)->comm;

	if (comm == NULL)
		return;
	for (int i = 0; i < comm->n; i++)
	{
#ifndef QWEN_NO_NCCL
		if (comm->nccl)
			(void) ncclCommDestroy(comm->ranks[i]);
#endif
		cuda_of(comm->devs[i])->comm = NULL;
	}
	delete comm;
}

/* ---- sums by NCCL ---- */

#ifndef QWEN_NO_NCCL
static ncclDataType_t
nccl_type(qwen_dtype type)
{
	return type == QWEN_F32 ? ncclFloat : type == QWEN_F16 ? ncclHalf : ncclBfloat16;
}

static bool
sum_by_nccl(const cuda_comm *comm, void *const *d_x, int64_t count, qwen_dtype type)
{
	ncclResult_t result = ncclGroupStart(), end;

	for (int i = 0; i < comm->n && result == ncclSuccess; i++)
		result = ncclAllReduce(d_x[i], d_x[i], (size_t) count, nccl_type(type), ncclSum, comm->ranks[i],
							   cuda_of(comm->devs[i])->stream);
	end = ncclGroupEnd();
	if (result == ncclSuccess)
		result = end;
	if (result != ncclSuccess)
		cuda_fail(comm->devs[0], "a sum over GPUs", ncclGetErrorString(result));
	return result == ncclSuccess;
}
#endif

/* ---- sums at the first device ---- */

/* Of a piece, all in the reach of one GPU. */
typedef struct sum_pointers
{
	const void *in[MAX_SHARDS]; /* [n_in] in the order of the shards */
	void *out[MAX_SHARDS];      /* [n_out] who gets the sum */
	int n_in;
	int n_out;
} sum_pointers;

#define SUM_THREADS 256

/* A thread an element. The first input is also an output: nobody else reads that element. */
template <typename T>
static __global__ void
__launch_bounds__(SUM_THREADS) sum_kernel(sum_pointers p, int64_t count)
{
	int64_t i = (int64_t) blockIdx.x * SUM_THREADS + threadIdx.x;
	float sum;
	T rounded;

	if (i >= count)
		return;
	sum = to_float(((const T *) p.in[0])[i]);
	for (int s = 1; s < p.n_in; s++)
		sum += to_float(((const T *) p.in[s])[i]);
	rounded = from_float<T>(sum);
	for (int s = 0; s < p.n_out; s++)
		((T *) p.out[s])[i] = rounded;
}

static void
launch_sum(qwen_device *dev, const sum_pointers *p, int64_t count, qwen_dtype type)
{
	unsigned blocks = (unsigned) ((count + SUM_THREADS - 1) / SUM_THREADS);
	cudaStream_t stream = cuda_of(dev)->stream;

	if (!cuda_ready(dev))
		return;
	if (type == QWEN_F32)
		CUDA_LAUNCH(sum_kernel<float>, blocks, SUM_THREADS, 0, stream, *p, count);
	else if (type == QWEN_F16)
		CUDA_LAUNCH(sum_kernel<__half>, blocks, SUM_THREADS, 0, stream, *p, count);
	else
		CUDA_LAUNCH(sum_kernel<__nv_bfloat16>, blocks, SUM_THREADS, 0, stream, *p, count);
	cuda_launched(dev, "sum_kernel");
}

static bool
is_near(const cuda_comm *comm, int i)
{
	return cuda_of(comm->devs[i])->index == cuda_of(comm->devs[0])->index;
}

/* x[i] and count: of the piece; far parts arrive in room, one behind the other. */
static bool
sum_piece(const cuda_comm *comm, char *const *x, char *room, int64_t count, qwen_dtype type, size_t size)
{
	qwen_device *first = comm->devs[0];
	size_t bytes = (size_t) count * size;
	sum_pointers p = sum_pointers();

	for (int i = 0; i < comm->n; i++)
		if (is_near(comm, i))
		{
			if (!cuda_wait_for(first, comm->devs[i]))
				return false;
			p.in[p.n_in++] = p.out[p.n_out++] = x[i];
		}
		else
		{
			if (!cuda_copy(first, room, comm->devs[i], x[i], bytes))
				return false;
			p.in[p.n_in++] = room;
			room += bytes;
		}
	launch_sum(first, &p, count, type);
	for (int i = 1; i < comm->n; i++)
		if (is_near(comm, i) ? !cuda_wait_for(comm->devs[i], first)
							 : !cuda_copy(comm->devs[i], x[i], first, x[0], bytes))
			return false;
	return true;
}

/* Elements of a piece: as many as the far parts of it find room, of whole lines of memory. */
static int64_t
piece_of(const cuda_comm *comm, size_t room, size_t size, int64_t count)
{
	int64_t n_far = 0, most;

	for (int i = 1; i < comm->n; i++)
		n_far += !is_near(comm, i);
	if (n_far == 0)
		return count;
	most = (int64_t) (room / CUDA_ALIGN) / n_far * CUDA_ALIGN / (int64_t) size;
	return count < most ? count : most;
}

static bool
sum_at_first(const cuda_comm *comm, void *const *d_x, int64_t count, qwen_dtype type)
{
	qwen_device *first = comm->devs[0];
	cuda_scratch scratch = cuda_scratch_of(&first->needs);
	size_t size = type == QWEN_F32 ? sizeof(float) : sizeof(uint16_t);
	int64_t piece = piece_of(comm, scratch.partials - scratch.blas, size, count);
	char *x[MAX_SHARDS];

	for (int64_t at = 0; at < count; at += piece)
	{
		for (int i = 0; i < comm->n; i++)
			x[i] = (char *) d_x[i] + (size_t) at * size;
		if (!sum_piece(comm, x, (char *) cuda_scratch_at(first, scratch.blas), count - at < piece ? count - at : piece,
					   type, size))
			return false;
	}
	return true;
}

/* ---- what the table offers ---- */

static bool
sum_of_type(qwen_device *const *devs, void *const *d_x, int n, int64_t count, qwen_dtype type)
{
	const cuda_comm *comm = cuda_of(devs[0])->comm;

	for (int i = 0; i < n; i++)
		if (!cuda_ready(devs[i]))
			return false;
	if (n == 1)
		return true;
	if (comm == NULL || !same_group(devs, n))
	{
		cuda_fail(devs[0], "a sum over GPUs", "the devices have not been joined");
		return false;
	}
#ifndef QWEN_NO_NCCL
	if (comm->nccl)
		return sum_by_nccl(comm, d_x, count, type);
#endif
	return sum_at_first(comm, d_x, count, type);
}

bool
cuda_sum(qwen_device *const *devs, void *const *d_x, int n, int64_t count)
{
	return sum_of_type(devs, d_x, n, count, devs[0]->act);
}

bool
cuda_sum_resid(qwen_device *const *devs, float *const *d_x, int n, int64_t count)
{
	return sum_of_type(devs, (void *const *) d_x, n, count, QWEN_F32);
}
