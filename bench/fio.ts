// Load by fio, which speaks NBD itself.

import { run } from './demo/tools.ts'

export interface Load {
  readonly rw: 'read' | 'write' | 'randread' | 'randwrite'
  readonly block: number
  readonly depth: number
  /** Of the disk, in bytes; from its beginning. */
  readonly size: number
  /** How long; or until so many requests are done. */
  readonly seconds?: number
  readonly requests?: number
  /** A flush after so many writes. */
  readonly flushEvery?: number
}

/** Requests in a second. */
export const fio = async (uri: string, load: Load): Promise<number> => (await fioResult(uri, load)).iops

/** The same, and how many there were. */
export async function fioResult(uri: string, { rw, block, depth, size, seconds, requests, flushEvery }: Load) {
  const said = await run('fio', [
    '--name=load',
    '--ioengine=nbd',
    `--uri=${uri}`,
    `--rw=${rw}`,
    `--bs=${block}`,
    `--iodepth=${depth}`,
    `--size=${size}`,
    '--output-format=json',
    '--randrepeat=1',
    '--norandommap',
    ...(seconds === undefined ? [] : ['--time_based', `--runtime=${seconds}`]),
    ...(requests === undefined ? [] : [`--io_size=${requests * block}`]),
    ...(flushEvery === undefined ? [] : [`--fsync=${flushEvery}`]),
  ])
  // Lines that are not JSON may come first.
  const { jobs } = JSON.parse(said.slice(said.indexOf('{'))) as {
    jobs: [Record<'read' | 'write', { readonly iops: number; readonly total_ios: number }>]
  }
  const { iops, total_ios: count } = jobs[0][rw.endsWith('read') ? 'read' : 'write']
  return { iops, count }
}
