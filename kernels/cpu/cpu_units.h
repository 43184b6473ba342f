/*
 * cpu_units.h
 *	  How fast the units are that the sets multiply with: the scale for
 *	  products.
 */
#ifndef QWEN_CPU_UNITS_H
#define QWEN_CPU_UNITS_H

#include "../kernels.h"

/*
 * Operations a second (a product and a sum count two) of the instruction that the device's set multiplies weights of a
 * type with, on all threads of the device, from registers; 0 when there is no measure for it.  Not while an operation
 * runs.
 */
double qwen_unit_rate(qwen_device *dev, qwen_dtype dtype);

#endif
