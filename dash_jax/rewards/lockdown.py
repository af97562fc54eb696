"""Locks this process down, for good, before it runs code that nobody has read.

  1. Limits on memory, CPU time and open files (setrlimit).
  2. Landlock: no file can be written or listed, and none read but the
     interpreter's own library and the system's shared libraries. What exists, and
     how large it is, can still be asked.
  3. seccomp: of system calls there are left those that computing takes. There is
     no socket, no process (threads there are), no exec, no signal to anyone, no
     tracing, no memory of others, no namespace, and no way to write a file or to
     raise a limit. Files in memory and shared memory are not there either.
  4. The kernel kills this process when the thread that started it ends.

All of it is what Linux gives to any user; nothing needs root, or changes for it.
Where a part is missing, `lock` raises, and nothing may be run: there is no weaker
mode. A hole in the kernel itself is not covered, as it would be by a machine of
its own.
"""

import ctypes
import errno
import os
import resource
import signal
import struct
import sys

MAX_MEMORY_BYTES = 512 * 1024**2
_MAX_FILES = 32

# Libraries that modules written in C load. Read only, as all that is left.
_LIBRARIES = (
  '/lib',
  '/lib64',
  '/usr/lib',
  '/usr/lib64',
  '/usr/local/lib',
  '/etc/ld.so.cache',
)

# By machine: what the kernel calls it, and the numbers of the system calls that
# are left, in the order of `man 2 syscalls`' groups: files that are open or may be
# read, memory, time, waiting, who we are, signals of our own, threads, the end.
_CALLS = {
  'x86_64': (
    0xC000003E,
    {
      'read': 0,
      'write': 1,
      'close': 3,
      'stat': 4,
      'fstat': 5,
      'lstat': 6,
      'lseek': 8,
      'pread64': 17,
      'access': 21,
      'getcwd': 79,
      'readlink': 89,
      'getdents64': 217,
      'newfstatat': 262,
      'readlinkat': 267,
      'faccessat': 269,
      'statx': 332,
      'faccessat2': 439,
      'mmap': 9,
      'mprotect': 10,
      'munmap': 11,
      'brk': 12,
      'mremap': 25,
      'madvise': 28,
      'nanosleep': 35,
      'gettimeofday': 96,
      'times': 100,
      'time': 201,
      'clock_gettime': 228,
      'clock_getres': 229,
      'clock_nanosleep': 230,
      'poll': 7,
      'select': 23,
      'pselect6': 270,
      'ppoll': 271,
      'getpid': 39,
      'uname': 63,
      'getrusage': 98,
      'sysinfo': 99,
      'getuid': 102,
      'getgid': 104,
      'geteuid': 107,
      'getegid': 108,
      'gettid': 186,
      'sched_getaffinity': 204,
      'getrandom': 318,
      'rt_sigaction': 13,
      'rt_sigprocmask': 14,
      'rt_sigreturn': 15,
      'sigaltstack': 131,
      'restart_syscall': 219,
      'sched_yield': 24,
      'futex': 202,
      'set_robust_list': 273,
      'rseq': 334,
      'exit': 60,
      'exit_group': 231,
    },
    {'openat': 257, 'clone': 56, 'clone3': 435},
  ),
  'aarch64': (
    0xC00000B7,
    {
      'read': 63,
      'write': 64,
      'close': 57,
      'fstat': 80,
      'lseek': 62,
      'pread64': 67,
      'getcwd': 17,
      'getdents64': 61,
      'newfstatat': 79,
      'readlinkat': 78,
      'faccessat': 48,
      'statx': 291,
      'faccessat2': 439,
      'mmap': 222,
      'mprotect': 226,
      'munmap': 215,
      'brk': 214,
      'mremap': 216,
      'madvise': 233,
      'nanosleep': 101,
      'gettimeofday': 169,
      'times': 153,
      'clock_gettime': 113,
      'clock_getres': 114,
      'clock_nanosleep': 115,
      'pselect6': 72,
      'ppoll': 73,
      'getpid': 172,
      'uname': 160,
      'getrusage': 165,
      'sysinfo': 179,
      'getuid': 174,
      'getgid': 176,
      'geteuid': 175,
      'getegid': 177,
      'gettid': 178,
      'sched_getaffinity': 123,
      'getrandom': 278,
      'rt_sigaction': 134,
      'rt_sigprocmask': 135,
      'rt_sigreturn': 139,
      'sigaltstack': 132,
      'restart_syscall': 128,
      'sched_yield': 124,
      'futex': 98,
      'set_robust_list': 99,
      'rseq': 293,
      'exit': 93,
      'exit_group': 94,
    },
    {'openat': 56, 'clone': 220, 'clone3': 435},
  ),
}

# linux/prctl.h
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_SECCOMP_MODE_FILTER = 2
_CLONE_THREAD = 0x10000
_CLONE_NEW = (
  0x7E020000  # Mounts, cgroups, names, IPC, users, processes, network.
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

# linux/bpf_common.h, linux/seccomp.h
_LOAD, _IF_EQUAL, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER_AT, _MACHINE_AT, _ARGUMENTS_AT = 0, 4, 16  # struct seccomp_data

# linux/landlock.h, of its first version: what newer ones add, seccomp refuses.
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_ACCESS_ALL = (1 << 13) - 1
_ACCESS_READ_FILE, _ACCESS_READ_FOLDER = 1 << 2, 1 << 3
_RULE_PATH_BENEATH = 1

_libc = ctypes.CDLL(None, use_errno=True)
if sys.platform == 'linux':
  _libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4


def lock(parent: int, max_cpu_s: int) -> None:
  """Locks this process, which must have one thread.

  Args:
    parent: the id of the process that started it.
    max_cpu_s: seconds of CPU time after which the kernel kills it.

  Raises:
    OSError: names what this machine does not have. Nothing may be run then.
  """
  if sys.platform != 'linux' or os.uname().machine not in _CALLS:
    raise OSError(
      f'code runs on Linux on {" or ".join(_CALLS)} only, where the kernel can'
      f' lock it down; this is {sys.platform} on {os.uname().machine}'
    )
  _require(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), 'prctl')
  if os.getppid() != parent:  # It had ended before we asked.
    os._exit(1)
  os.chdir('/')
  for limit, value in (
    (resource.RLIMIT_AS, MAX_MEMORY_BYTES),
    (resource.RLIMIT_CPU, max_cpu_s),
    (resource.RLIMIT_NOFILE, _MAX_FILES),
    (resource.RLIMIT_FSIZE, 0),
    (resource.RLIMIT_CORE, 0),
    (resource.RLIMIT_MEMLOCK, 0),
  ):
    resource.setrlimit(limit, (value, value))
  _require(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 'no_new_privs')
  _restrict_files([*sys.path, f'{sys.base_prefix}/lib', *_LIBRARIES])
  _restrict_calls(*_CALLS[os.uname().machine])
  _check()


def _require(result: int, name: str) -> int:
  if result < 0:
    code = ctypes.get_errno()
    raise OSError(
      code, f'code cannot be locked down: {name}: {os.strerror(code)}'
    )
  return result


def _restrict_files(paths: list[str]) -> None:
  name = (
    'Landlock is needed, of Linux 5.13 or newer and among its security modules'
    ' (/sys/kernel/security/lsm)'
  )
  attributes = struct.pack('=Q', _ACCESS_ALL)
  rules = _require(
    _libc.syscall(
      _LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0
    ),
    name,
  )
  for path in paths:
    try:
      beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
      continue  # Not every machine has each.
    access = _ACCESS_READ_FILE | (_ACCESS_READ_FOLDER * os.path.isdir(path))
    rule = struct.pack('=Qi', access, beneath)
    result = _libc.syscall(_LANDLOCK_ADD, rules, _RULE_PATH_BENEATH, rule, 0)
    _require(result, name)
    os.close(beneath)
  _require(_libc.syscall(_LANDLOCK_RESTRICT, rules, 0), name)
  os.close(rules)


def _restrict_calls(
  machine: int, plain: dict[str, int], special: dict[str, int]
) -> None:
  def step(code, value, if_true=0, if_false=0):
    return struct.pack('=HBBI', code, if_true, if_false, value)

  refuse = step(_RETURN, _ERRNO | errno.EPERM)
  program = [
    step(_LOAD, _MACHINE_AT),
    step(_IF_EQUAL, machine, 1, 0),
    step(_RETURN, _KILL),  # Calls of another machine have other numbers.
    step(_LOAD, _NUMBER_AT),
  ]
  for number in plain.values():
    program += [step(_IF_EQUAL, number, 0, 1), step(_RETURN, _ALLOW)]
  program += [
    # The C library then asks for clone, whose flags a filter can see.
    step(_IF_EQUAL, special['clone3'], 0, 1),
    step(_RETURN, _ERRNO | errno.ENOSYS),
    step(_IF_EQUAL, special['clone'], 0, 5),
    step(_LOAD, _ARGUMENTS_AT),
    step(_IF_ANY_BIT, _CLONE_NEW, 2, 0),
    step(_IF_ANY_BIT, _CLONE_THREAD, 0, 1),
    step(_RETURN, _ALLOW),
    refuse,
    step(_IF_EQUAL, special['openat'], 0, 4),
    step(_LOAD, _ARGUMENTS_AT + 2 * 8),
    step(_IF_ANY_BIT, _WRITING, 1, 0),
    step(_RETURN, _ALLOW),
    refuse,
    refuse,
  ]
  steps = ctypes.create_string_buffer(b''.join(program))
  pointer = ctypes.addressof(steps)
  whole = ctypes.create_string_buffer(struct.pack('@HP', len(program), pointer))
  result = _libc.prctl(
    _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(whole), 0, 0
  )
  _require(result, 'seccomp filters are needed')


def _check() -> None:
  """Tries what must not work any more.

  Raises:
    OSError: it does, whatever the kernel said.
  """
  if _libc.socket(2, 1, 0) >= 0:
    raise OSError('code cannot be locked down: seccomp leaves the network')
  for path, flags in (('/proc/self/environ', os.O_RDONLY), ('/', os.O_RDONLY)):
    try:
      os.open(path, flags)
    except OSError:
      continue
    raise OSError(f'code cannot be locked down: Landlock leaves {path}')
