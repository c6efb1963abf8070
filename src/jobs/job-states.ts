// The life of a job, as tables: which status follows which, and which verb is taken in which (QEMU's job.c, JobSTT and JobVerbTable).

export type JobStatus =
  'created' | 'running' | 'paused' | 'ready' | 'standby' | 'waiting' | 'pending' | 'aborting' | 'concluded' | 'null'

export type JobVerb = 'cancel' | 'pause' | 'resume' | 'set-speed' | 'complete' | 'finalize' | 'dismiss' | 'change'

/** Any other step is a mistake of ours. */
export const following: Readonly<Record<JobStatus, readonly JobStatus[]>> = {
  created: ['running', 'aborting', 'null'],
  running: ['paused', 'ready', 'waiting', 'aborting'],
  paused: ['running'],
  ready: ['standby', 'waiting', 'aborting'],
  standby: ['ready'],
  waiting: ['pending', 'aborting'],
  pending: ['aborting', 'concluded'],
  aborting: ['aborting', 'concluded'],
  concluded: ['null'],
  null: [],
}

const ALIVE = ['created', 'running', 'paused', 'ready', 'standby'] as const

/** Any other is a mistake of the user's. */
export const accepted: Readonly<Record<JobVerb, readonly JobStatus[]>> = {
  cancel: [...ALIVE, 'waiting', 'pending'],
  pause: ALIVE,
  resume: ALIVE,
  'set-speed': ALIVE,
  complete: ['ready', 'standby'],
  finalize: ['pending'],
  dismiss: ['concluded'],
  change: ALIVE,
}
