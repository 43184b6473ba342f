/*
 * machine.h
 *	  The devices of this machine, with the memory that they have now.
 */
#ifndef QWEN_MACHINE_H
#define QWEN_MACHINE_H

#include "plan.h"

/*
 * Fills in the GPUs, when the CUDA plug-in stands beside this program and finds some, and the processor; returns how
 * many there are.
 */
int qwen_machine_devices(qwen_plan_device devices[QWEN_PLAN_MAX_DEVICES]);

/* The processor alone, with what the machine, or the memory cgroups of this process, can give. */
qwen_plan_device qwen_machine_processor(void);

#endif
