// What the program exits with, for its code and its reference.

export const exitCodes = {
  done: 0,
  failed: 1,
  usage: 2,
  partlyDone: 3,
  warnings: 4,
  noRepository: 10,
  busy: 11,
  wrongKey: 12,
  checkpointInconsistent: 20,
  damageFound: 21,
  interrupted: 130,
  terminated: 143,
} as const

/** In words, for the reference. */
export const exitCodeMeanings: readonly (readonly [code: number, meaning: string])[] = [
  [exitCodes.done, 'done'],
  [exitCodes.failed, 'failed: standard error says why, and what to do next'],
  [exitCodes.usage, 'the call, or the configuration, has a mistake'],
  [exitCodes.partlyDone, 'partly done: of several commands given to `qmp`, or machines of a schedule, some failed'],
  [
    exitCodes.warnings,
    'done, with warnings: `doctor` has found something that is slower or without a guard, or `config reload` could not do all',
  ],
  [exitCodes.noRepository, 'there is no repository at this place'],
  [exitCodes.busy, 'what was asked for is in use, or another daemon runs already'],
  [exitCodes.wrongKey, 'the key does not open the repository'],
  [exitCodes.checkpointInconsistent, 'a checkpoint cannot be used: it is not known for certain what changed since'],
  [exitCodes.damageFound, 'damage was found in a repository'],
  [exitCodes.interrupted, 'interrupted by SIGINT (^C); the daemon goes on with what it was asked'],
  [exitCodes.terminated, 'ended by SIGTERM'],
]

/** In words, for the reference. */
export const environment: readonly (readonly [name: string, meaning: string])[] = [
  ['STILLPOINT_SOCKET', "the daemon's control socket, where --socket does not name it"],
  ['STILLPOINT_DEBUG', '1: errors are told with where in the program they came from'],
  ['STILLPOINT_NATIVE', 'off: do without system calls that Node lacks, such as locks on image files'],
  [
    'STILLPOINT_LEND_AFTER',
    'after how many small writes in a row, or four times as many reads, a client has a thread to itself (64); never: none has',
  ],
  ['TZ', 'the time zone in which times are shown to people'],
  ['XDG_STATE_HOME', 'where the history of `stillpoint qmp` is kept, in stillpoint/qmp-history; default: ~/.local/state'],
]
