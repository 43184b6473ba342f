/*
 * gpu.h
 *	  GPUs, through the CUDA plug-in that stands beside this program.
 */
#ifndef QWEN_GPU_H
#define QWEN_GPU_H

#include "../kernels/cuda/plugin.h"

/* Whether there is a plug-in in this program's folder. */
bool qwen_gpu_installed(void);

/*
 * Fills in up to max GPUs and returns how many that are.  why says what keeps all of them, or one, from being used, and
 * is empty otherwise.
 */
int qwen_gpu_list(qwen_cuda_device *gpus, int max, char *why, size_t why_size);

/* The number of the GPU that a device is on: of "cuda:2" and of "cuda:2.1" it is 2. */
int qwen_gpu_index(const char *name);

/* Opens the device of that name; act: the type of activations.  On failure NULL, and err has a sentence fragment. */
qwen_device *qwen_gpu_open(const char *name, qwen_dtype act, char *err, size_t errlen);

#endif
