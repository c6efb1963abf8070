// A guest that is booted for a test: Debian's kernel and an initramfs of busybox and a script, in QEMU without KVM, which takes some seconds.
//
// scripts/setup.mjs fetches the kernel. The guest reaches this machine's loopback at 10.0.2.2, and says on its console what it has found.

import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { availableParallelism, loadavg, tmpdir } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { find, missing, run } from './tools.ts'

/** This machine's loopback, as the guest sees it. */
export const HOST = '10.0.2.2'

const kernel = fileURLToPath(new URL('../../../node_modules/.cache/guest-kernel', import.meta.url))

/** More programs than this want each processor: what takes ten seconds may then take minutes. */
const BUSY = 4

/** For a test's `skip`: what is not there, or false. */
export const noGuest = (...programs: string[]): string | false =>
  missing('qemu-system-x86_64', 'busybox', 'ldd', ...programs) ||
  (!existsSync(kernel) && 'there is no kernel for a guest (scripts/setup.mjs --for test fetches it)') ||
  (loadavg()[0]! > BUSY * availableParallelism() && 'the machine is too busy to emulate another')

export interface GuestWants {
  /** For busybox's shell; /bin has its commands and `programs`. The guest is turned off behind it. */
  readonly script: string
  /** Kernel modules that are loaded before, with those that they need. */
  readonly modules: readonly string[]
  /** Programs of this machine, which come with their libraries. */
  readonly programs?: readonly string[]
  /** Further files by their paths in the guest. */
  readonly files?: Readonly<Record<string, Buffer>>
}

/** Runs the script in a guest, and returns what came to its console. */
export async function runGuest({ script, modules, programs = [], files = {} }: GuestWants): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'stillpoint-guest-'))
  try {
    const loaded = inOrder(['virtio_pci', 'virtio_net', ...modules])
    const tree = new Map(Object.entries(files))
    for (const { name, bytes } of loaded) tree.set(`modules/${name}.ko`, bytes)
    for (const program of ['busybox', ...programs]) await addProgram(tree, find(program) ?? program)
    tree.set('init', Buffer.from(initOf(loaded, script)))
    const initrd = join(folder, 'initrd')
    await writeFile(initrd, archive(tree))
    const boot = join(kernel, 'boot')
    const image = readdirSync(boot).find(name => name.startsWith('vmlinuz'))!
    // prettier-ignore
    const machine = [
      '-machine', 'q35', '-accel', 'tcg', '-cpu', 'max', '-m', '256', '-nodefaults', '-nographic', '-no-reboot',
      '-kernel', join(boot, image), '-initrd', initrd, '-append', 'console=ttyS0 loglevel=0 panic=-1',
      '-serial', 'stdio', '-netdev', 'user,id=net', '-device', 'virtio-net-pci,netdev=net,romfile=',
    ]
    return await run('qemu-system-x86_64', machine, { timeoutMs: 95_000 })
  } finally {
    await rm(folder, { recursive: true })
  }
}

const initOf = (modules: readonly { readonly name: string }[], script: string) => `#!/bin/busybox sh
export PATH=/bin
/bin/busybox mkdir -p /proc /sys /dev /mnt /tmp
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
${modules.map(({ name }) => `insmod /modules/${name}.ko`).join('\n')}
ip link set lo up
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
echo # the firmware has left its line unended
${script}
poweroff -f
`

/** The modules, each behind those that it needs. What the kernel has built in is no file, and is there. */
function inOrder(wanted: readonly string[]) {
  const folder = join(kernel, 'lib/modules')
  const paths = new Map<string, string>()
  for (const path of readdirSync(folder, { recursive: true, encoding: 'utf8' }))
    if (path.endsWith('.ko')) paths.set(basename(path, '.ko').replaceAll('-', '_'), join(folder, path))
  const ordered = new Map<string, Buffer>()
  const add = (name: string) => {
    const path = paths.get(name)
    if (path === undefined || ordered.has(name)) return
    const bytes = readFileSync(path)
    const needed = /\0depends=([^\0]*)\0/.exec(bytes.toString('latin1'))?.[1] ?? ''
    for (const other of needed.split(',').filter(Boolean)) add(other)
    ordered.set(name, bytes)
  }
  wanted.forEach(add)
  return [...ordered].map(([name, bytes]) => ({ name, bytes }))
}

/** In /bin, with the libraries that it names, where it looks for them. */
async function addProgram(tree: Map<string, Buffer>, program: string) {
  tree.set(`bin/${basename(program)}`, readFileSync(program))
  // Of a program without libraries it says so, and fails.
  const libraries = await run('sh', ['-c', 'ldd "$1" || true', '-', program])
  for (const [path] of libraries.matchAll(/\/\S+/g)) if (existsSync(path)) tree.set(path.slice(1), readFileSync(path))
}

/** The kernel's format for its first files ("newc", Documentation/driver-api/early-userspace/buffer-format.rst). */
function archive(tree: ReadonlyMap<string, Buffer>): Buffer {
  const parts: Buffer[] = []
  const add = (path: string, mode: number, content: Buffer = Buffer.alloc(0)) => {
    const name = Buffer.from(`${path}\0`)
    // magic ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    const fields = [parts.length, mode, 0, 0, 1, 0, content.length, 0, 0, 0, 0, name.length, 0]
    const head = Buffer.from(`070701${fields.map(field => field.toString(16).padStart(8, '0')).join('')}`)
    for (const part of [Buffer.concat([head, name]), content]) parts.push(part, Buffer.alloc(-part.length & 3))
  }
  const folders = new Set<string>()
  const addFolder = (path: string) => {
    if (path === '.' || folders.has(path)) return
    addFolder(dirname(path))
    folders.add(path)
    add(path, 0o40755)
  }
  for (const [path, content] of tree) {
    addFolder(dirname(path))
    add(path, 0o100755, content)
  }
  add('TRAILER!!!', 0)
  return Buffer.concat(parts)
}
