"""A clock that jumps: a library to load before a server's own."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

# gettimeofday and clock_gettime(CLOCK_REALTIME), moved by the seconds (a double) that the file FAKE_CLOCK holds.
_CLOCK_C = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static volatile double *offset;
__attribute__((constructor)) static void open_file(void) {
  const char *path = getenv("FAKE_CLOCK");
  int fd = path ? open(path, O_RDONLY) : -1;
  if (fd < 0) return;
  void *page = mmap(0, sizeof(double), PROT_READ, MAP_SHARED, fd, 0);
  if (page != MAP_FAILED) offset = page;
}
int gettimeofday(struct timeval *restrict tv, void *restrict tz) {
  static int (*real)(struct timeval *, void *);
  if (!real) real = dlsym(RTLD_NEXT, "gettimeofday");
  int code = real(tv, tz);
  if (tv && offset) tv->tv_sec += (time_t)*offset;
  return code;
}
int clock_gettime(clockid_t id, struct timespec *ts) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
  int code = real(id, ts);
  if (id == CLOCK_REALTIME && offset) ts->tv_sec += (time_t)*offset;
  return code;
}
"""


def compile_clock(folder: Path) -> Path | None:
    """Compile the library that moves a process' clock; None where there is no C compiler, or no Linux."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not Path("/proc/self").exists():
        return None
    source, library = folder / "clock.c", folder / "clock.so"
    source.write_text(_CLOCK_C)
    built = subprocess.run(
        [compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"], capture_output=True, check=False
    )
    return library if built.returncode == 0 else None
