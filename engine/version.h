/*
 * version.h
 *	  The release, as in qwen.control.
 */
#ifndef QWEN_VERSION_H
#define QWEN_VERSION_H

#define QWEN_VERSION "0.1.0"

#endif
