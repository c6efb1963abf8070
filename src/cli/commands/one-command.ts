// The command that is going to run, without the others: to load them all takes as long as many a command has to do.

import type { Noun, Verb } from '../define.ts'
import type { RunDaemon } from './daemon.ts'

/** Those of index.ts but `completion`, which is about all of them. */
export const loaders: Readonly<Record<string, (runDaemon: RunDaemon) => Promise<Noun | Verb>>> = {
  daemon: async runDaemon => (await import('./daemon.ts')).daemon(runDaemon),
  status: async () => (await import('./status.ts')).status,
  config: async () => (await import('./config.ts')).config,
  disk: async () => (await import('./disk/index.ts')).disk,
  checkpoint: async () => (await import('./checkpoint.ts')).checkpoint,
  backup: async () => (await import('./backup.ts')).backup,
  schedule: async () => (await import('./schedule.ts')).schedule,
  restore: async () => (await import('./restore.ts')).restore,
  serve: async () => (await import('./serve.ts')).serve,
  nbd: async () => (await import('./nbd.ts')).nbd,
  point: async () => (await import('./point.ts')).point,
  repo: async () => (await import('./repo.ts')).repo,
  image: async () => (await import('./image/index.ts')).image,
  qmp: async () => (await import('./qmp.ts')).qmp,
  monitor: async () => (await import('./monitor.ts')).monitor,
  doctor: async () => (await import('./doctor.ts')).doctor,
}

/** Undefined where the words do not begin with a command, or with the options that may come before it: then all are needed, to say so. */
export async function oneCommand(words: readonly string[], runDaemon: RunDaemon): Promise<Noun | Verb | undefined> {
  let at = 0
  for (let word = words[at]; word?.startsWith('--'); word = words[at]) {
    if (word === '--socket') at++
    else if (word !== '--json' && !word.startsWith('--socket=')) return undefined
    at++
  }
  const name = words[at]
  return name !== undefined && Object.hasOwn(loaders, name) ? loaders[name]!(runDaemon) : undefined
}
