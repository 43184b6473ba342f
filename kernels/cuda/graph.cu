/*
 * graph.cu
 *	  Stretches of decode steps that are recorded once and repeated.
 *
 * A step of one token consists of hundreds of kernels of a few microseconds,
 * about as long as it takes to launch one; launched together as a graph they
 * follow each other without gaps.  What a recording does depends on nothing
 * but its key: the stretch, the rows after padding, the splits of attention.
 * All else is data that lies where it lay in any other step.
 *
 *	  first time    the operations run as they come: kernels are loaded,
 *					libraries choose and allocate, which a recording forbids
 *	  second time   they are recorded, and launched as a graph at the end
 *	  from then on  the graph is launched, the operations are left out
 *
 * A device that has partners in its stage waits for them between the layers
 * and goes without.  So does one whose GPU is nearly full, because what fails
 * in the midst of a recording cannot be made up for.
 */
#include "kernels/cuda/cuda_device.h"

#include <stdio.h>

/* Keys kept; the one that has not been used for the longest time makes room. */
#define MAX_KEPT 256

/* Memory that is free on the GPU when something is recorded: several times what a graph takes. */
#define RECORDING_ROOM ((size_t) 64 << 20)

typedef struct recording
{
	int id;
	int32_t rows;
	int32_t n_splits;
	cudaGraphExec_t exec; /* NULL: seen and not recorded */
	uint64_t used;        /* by the clock */
} recording;

struct cuda_graphs
{
	recording kept[MAX_KEPT];
	int n_kept;
	uint64_t clock;    /* stretches so far */
	recording *open;   /* being recorded */
	bool off;          /* the device cannot record */
	bool room_is_told; /* that there is too little room */
};

cuda_graphs *
cuda_graphs_new(void)
{
	return new cuda_graphs();
}

void
cuda_graphs_free(cuda_graphs *graphs)
{
	if (graphs == NULL)
		return;
	for (int i = 0; i < graphs->n_kept; i++)
		if (graphs->kept[i].exec)
			(void) cudaGraphExecDestroy(graphs->kept[i].exec);
	delete graphs;
}

/* ---- what is kept ---- */

static recording *
find(cuda_graphs *g, int id, const cuda_batch *b)
{
	for (int i = 0; i < g->n_kept; i++)
	{
		recording *r = &g->kept[i];

		if (r->id == id && r->rows == b->rows && r->n_splits == b->n_splits)
			return r;
	}
	return NULL;
}

static recording *
oldest(cuda_graphs *g)
{
	recording *r = &g->kept[0];

	for (int i = 1; i < g->n_kept; i++)
		if (g->kept[i].used < r->used)
			r = &g->kept[i];
	return r;
}

/* A graph that is thrown out may still be running. */
static void
remember(qwen_device *dev, cuda_graphs *g, int id, const cuda_batch *b)
{
	recording *r;

	if (g->n_kept < MAX_KEPT)
		r = &g->kept[g->n_kept++];
	else
	{
		r = oldest(g);
		if (r->exec && cuda_check(dev, cudaStreamSynchronize(cuda_of(dev)->stream), "a recorded step"))
			cuda_check(dev, cudaGraphExecDestroy(r->exec), "forgetting a recorded step");
	}
	*r = {id, b->rows, b->n_splits, NULL, g->clock};
}

/* ---- recording ---- */

static bool
has_room(qwen_device *dev, cuda_graphs *g)
{
	size_t free_bytes = 0, total = 0;

	if (!cuda_check(dev, cudaMemGetInfo(&free_bytes, &total), "asking for free memory"))
		return false;
	if (free_bytes < RECORDING_ROOM && !g->room_is_told)
		fprintf(stderr, "qwen-engine: %s: too little memory is free to record steps\n", dev->name);
	g->room_is_told = g->room_is_told || free_bytes < RECORDING_ROOM;
	return free_bytes >= RECORDING_ROOM;
}

static void
start(qwen_device *dev, cuda_graphs *g, recording *r)
{
	/* calls of other threads, such as asking for free memory, go on meanwhile */
	cudaError_t error = cudaStreamBeginCapture(cuda_of(dev)->stream, cudaStreamCaptureModeThreadLocal);

	if (error == cudaSuccess)
	{
		g->open = r;
		return;
	}
	(void) cudaGetLastError();
	g->off = true;
	fprintf(stderr, "qwen-engine: %s: steps are not recorded: %s\n", dev->name, cudaGetErrorString(error));
}

bool
cuda_segment_begin(qwen_device *dev, int id)
{
	cuda_device *d = cuda_of(dev);
	cuda_graphs *g = d->graphs;
	recording *r;

	if (!cuda_ready(dev) || !d->batch.decode_step || d->comm || g->off)
		return true;
	g->clock++;
	r = find(g, id, &d->batch);
	if (r == NULL)
	{
		remember(dev, g, id, &d->batch);
		return true;
	}
	r->used = g->clock;
	if (r->exec)
	{
		cuda_check(dev, cudaGraphLaunch(r->exec, d->stream), "repeating a recorded step");
		return false;
	}
	if (has_room(dev, g))
		start(dev, g, r);
	return true;
}

/* Also of a device that has failed since: its stream must leave the recording. */
void
cuda_segment_end(qwen_device *dev)
{
	cuda_device *d = cuda_of(dev);
	recording *r = d->graphs->open;
	cudaGraph_t graph = NULL;

	if (r == NULL)
		return;
	d->graphs->open = NULL;
	if (cuda_check(dev, cudaStreamEndCapture(d->stream, &graph), "recording a step") && cuda_ready(dev) &&
		cuda_check(dev, cudaGraphInstantiate(&r->exec, graph, 0), "recording a step"))
		cuda_check(dev, cudaGraphLaunch(r->exec, d->stream), "a recorded step");
	if (graph)
		(void) cudaGraphDestroy(graph);
}
