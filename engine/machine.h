/*
 * machine.h
 *	  The devices of this machine, with the memory that they have now.
 */
#ifndef QWEN_MACHINE_H
#define QWEN_MACHINE_H

#include "plan.h"

/*
 * The devices that the settings can mean, divided as they say (qwen_plan_divide): GPUs, unless the map keeps to
 * processors, and the processor.  Why GPUs that were looked for are not among them is in why, which is empty otherwise;
 * it is an error where the settings name one.
 */
qwen_status qwen_machine_devices(const qwen_plan_settings *settings, qwen_plan_device devices[QWEN_PLAN_MAX_DEVICES],
								 int *n, char *why, size_t why_size, qwen_error *err);

/* The processor alone, with what the machine, or the memory cgroups of this process, can give. */
qwen_plan_device qwen_machine_processor(void);

#endif
