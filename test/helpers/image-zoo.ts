// Images of all kinds, made by qemu-img and qemu-io.

import { truncateSync, writeFileSync } from 'node:fs'
import { randomBytes } from './random-bytes.ts'
import { run } from './tools.ts'

const MiB = 1 << 20

export const qemuIo = (image: string, ...commands: string[]) =>
  run('qemu-io', ['-d', 'unmap', ...commands.flatMap(command => ['-c', command]), image])

/** The first is raw, the last a chain of three, the one before it one of two. */
export async function imageZoo(folder: string): Promise<string[]> {
  const make = async (name: string, format: string, options: string, size: string, ...commands: string[]) => {
    const path = `${folder}/${name}`
    await run('qemu-img', ['create', '-q', '-f', format, ...(options ? ['-o', options] : []), path, size])
    if (commands.length > 0) await qemuIo(path, ...commands)
    return path
  }
  const some = ['write -P 1 0 64k', 'write -P 2 1000k 3k', 'write -z 200k 100k', 'write -P 3 3M 10k']
  const compressed = ['write -c -P 7 2M 64k']
  const raw = `${folder}/plain.raw`
  writeFileSync(raw, randomBytes(70_000, 1))
  truncateSync(raw, 4 * MiB)
  const images = [
    raw,
    await make('plain.qcow2', 'qcow2', '', '4M', ...some, ...compressed),
    await make('old.qcow2', 'qcow2', 'compat=0.10', '4M', 'write -P 1 0 64k', 'write -P 3 3M 10k'),
    await make('small.qcow2', 'qcow2', 'cluster_size=4k,refcount_bits=1', '4M', ...some),
    await make('sub.qcow2', 'qcow2', 'extended_l2=on,cluster_size=128k', '4M', ...some),
    await make('zstd.qcow2', 'qcow2', 'compression_type=zstd,lazy_refcounts=on', '4M', ...some, ...compressed),
    await make('tables.qcow2', 'qcow2', 'preallocation=metadata', '4M', 'write -P 1 1M 64k'),
    await make('data.qcow2', 'qcow2', `data_file=${folder}/data.bin,data_file_raw=on`, '4M', 'write -P 1 1M 64k'),
    await make('base.qcow2', 'qcow2', '', '3M', ...some.slice(0, 3)),
  ]
  const overlay = `${folder}/overlay.qcow2`
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', 'base.qcow2', '-F', 'qcow2', overlay, '5M'])
  await qemuIo(overlay, 'write -P 9 64k 64k', 'write -P 9 4M 64k', 'discard 0 64k')
  const top = `${folder}/top.qcow2`
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', overlay, '-F', 'qcow2', top])
  await qemuIo(top, 'write -P 5 128k 1k')
  for (const name of ['one', 'two']) await run('qemu-img', ['bitmap', '--add', '-g', '32k', top, name])
  await run('qemu-img', ['bitmap', '--disable', top, 'two'])
  await run('qemu-img', ['snapshot', '-c', 'a snapshot', top])
  return [...images, overlay, top]
}
