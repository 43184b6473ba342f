/*
 * nccl.h
 *	  As much of NCCL as the plug-in uses, for the emulated CUDA.
 */
#ifndef EMULATED_NCCL_H
#define EMULATED_NCCL_H

#include <cuda_runtime.h>

enum ncclResult_t
{
	ncclSuccess = 0,
	ncclSystemError = 2,
	ncclInvalidArgument = 4,
	ncclInvalidUsage = 5
};

enum ncclDataType_t
{
	ncclHalf = 6,
	ncclFloat = 7,
	ncclBfloat16 = 9
};

enum ncclRedOp_t
{
	ncclSum = 0
};

typedef struct emulated_rank *ncclComm_t;

ncclResult_t ncclCommInitAll(ncclComm_t *comms, int n, const int *devices);
ncclResult_t ncclCommDestroy(ncclComm_t comm);
ncclResult_t ncclGroupStart(void);
ncclResult_t ncclGroupEnd(void);
ncclResult_t ncclAllReduce(const void *src, void *dst, size_t count, ncclDataType_t type, ncclRedOp_t op,
						   ncclComm_t comm, cudaStream_t stream);
const char *ncclGetErrorString(ncclResult_t result);

#endif
