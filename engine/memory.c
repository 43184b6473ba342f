/*
 * memory.c
 *	  How much memory the machine can still give this process.
 *
 * Inside a container the limit of the cgroup is what kills, not the machine's
 * total, so both are read.  Page cache counts against a cgroup but is given
 * up under pressure, so it is counted as available.
 */
#include "memory.h"

#include <inttypes.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

/* The number after `key` in a file of "key value" lines, or in a file with a single number when key is "". */
static bool
read_number(const char *path, const char *key, uint64_t *out)
{
	FILE *f = fopen(path, "re");
	char line[256];
	bool found = false;

	if (!f)
		return false;
	while (!found && fgets(line, sizeof(line), f))
		if (!strncmp(line, key, strlen(key)))
			found = sscanf(line + strlen(key), "%" SCNu64, out) == 1;
	fclose(f);
	return found;
}

/* What one cgroup directory leaves; "max" is no number, so no limit. */
static uint64_t
group_left(const char *dir)
{
	char path[PATH_MAX + 32];
	uint64_t limit, used, cache = 0;

	snprintf(path, sizeof(path), "%s/memory.max", dir);
	if (!read_number(path, "", &limit))
		return UINT64_MAX;
	snprintf(path, sizeof(path), "%s/memory.current", dir);
	if (!read_number(path, "", &used))
		return UINT64_MAX;
	snprintf(path, sizeof(path), "%s/memory.stat", dir);
	read_number(path, "inactive_file ", &cache);
	used = used > cache ? used - cache : 0;
	return limit > used ? limit - used : 0;
}

/* The least that the process's cgroup and those above it leave (cgroup v2). */
static uint64_t
cgroup_left(void)
{
	static const char root[] = "/sys/fs/cgroup";
	char line[PATH_MAX], dir[PATH_MAX + sizeof(root)];
	FILE *f = fopen("/proc/self/cgroup", "re");
	uint64_t left = UINT64_MAX;
	bool found = false;

	if (!f)
		return left;
	while (!found && fgets(line, sizeof(line), f))
		found = !strncmp(line, "0::/", 4);
	fclose(f);
	if (!found)
		return left;
	line[strcspn(line, "\n")] = '\0';
	snprintf(dir, sizeof(dir), "%s%s", root, line + 3);
	for (char *slash = dir + strlen(dir); slash && strlen(dir) >= sizeof(root) - 1; slash = strrchr(dir, '/'))
	{
		uint64_t here;

		*slash = '\0';
		here = group_left(dir);
		left = here < left ? here : left;
	}
	return left;
}

uint64_t
qwen_memory_available(void)
{
	uint64_t kib, left = cgroup_left();

	if (read_number("/proc/meminfo", "MemAvailable:", &kib) && kib < UINT64_MAX / 1024 && kib * 1024 < left)
		left = kib * 1024;
	return left;
}

const char *
qwen_memory_text(char *out, int size, uint64_t bytes)
{
	static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB"};
	double value = (double) bytes;
	int unit = 0;

	for (; value >= 1024 && unit < 5; unit++)
		value /= 1024;
	snprintf(out, (size_t) size, unit ? "%.1f %s" : "%.0f %s", value, units[unit]);
	return out;
}
