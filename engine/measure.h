/*
 * measure.h
 *	  What the machine gives: the scale that bench and probe measure against.
 */
#ifndef QWEN_MEASURE_H
#define QWEN_MEASURE_H

#include "../kernels/kernels.h"

/* Seconds of a clock that only goes forward. */
double qwen_seconds(void);

/* Bytes a second that n_threads threads together read from memory; 0 when there is no memory for it. */
double qwen_measure_bandwidth(int n_threads);

/*
 * Operations a second (a product and a sum count two) of the device's linear on many rows, with weights wanted as dtype;
 * 0 as above.  Not while a step runs.
 */
double qwen_measure_matrix(qwen_device *dev, qwen_dtype dtype);

#endif
