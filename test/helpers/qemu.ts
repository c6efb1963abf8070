// QEMU's tools, the judges of what we do with images. They wait more than they work, so several run at a time where there are many.

import { spawn, spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'

/** Why a test that needs these programs must be skipped; false when they are there. */
export function missing(...programs: string[]): string | false {
  const lacking = programs.filter(program => spawnSync(program, ['--version']).error)
  return lacking.length > 0 && `${lacking.join(' and ')} ${lacking.length > 1 ? 'are' : 'is'} missing`
}

/** A folder in memory where there is one: with hundreds of images, half of the time is QEMU waiting for a disk to flush. */
export async function scratchFolder(stack: AsyncDisposableStack): Promise<string> {
  const folder = await mkdtemp(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'stillpoint-test-'))
  stack.defer(() => rm(folder, { recursive: true }))
  return folder
}

/** Its output; throws with what it says on standard error where it fails. */
export async function qemuImg(...args: string[]): Promise<string> {
  const { status, stdout, stderr } = await run('qemu-img', args)
  if (status !== 0) throw new Error(`qemu-img ${args.join(' ')}: ${stderr}`)
  return stdout
}

/** Runs commands on an image, such as `write -P 7 0 64k`. The first that fails is thrown. */
export async function qemuIo(image: string, ...commands: string[]): Promise<string> {
  const args = ['-f', 'qcow2', '-d', 'unmap', '-t', 'unsafe', image]
  const { status, stdout, stderr } = await run('qemu-io', args, commands.map(command => `${command}\n`).join(''))
  const failed = failure.exec(stdout + stderr)
  if (status !== 0 || failed) throw new Error(`qemu-io ${image} ${commands.join('; ')}: ${stderr}${failed?.[0] ?? ''}`)
  return stdout
}

/** The same for many images, by one program that opens one behind the other. */
export async function qemuIoOver(
  all: readonly { readonly image: string; readonly commands: readonly string[] }[],
): Promise<void> {
  const lines = all.flatMap(({ image, commands }) =>
    commands.length === 0 ? [] : [`open -o driver=qcow2,discard=unmap,cache.no-flush=on ${image}`, ...commands, 'close'],
  )
  const { status, stdout, stderr } = await run('qemu-io', [], lines.map(line => `${line}\n`).join(''))
  const failed = failure.exec(stdout + stderr)
  if (status !== 0 || failed) throw new Error(`qemu-io: ${stderr}${failed?.[0] ?? ''}`)
}

const failure = /^(qemu-io: |.*(failed|error|Invalid|not supported|can't open).*)/im

/** What `qemu-img check` has to say about an image; an empty string when all is well. */
export async function qemuCheck(image: string): Promise<string> {
  const { status, stdout, stderr } = await run('qemu-img', ['check', '-f', 'qcow2', image])
  const complaints = (stdout + stderr).split('\n').filter(line => /ERROR|Leaked|Repairing/.test(line))
  return status === 0 && complaints.length === 0
    ? ''
    : `exit code ${status}: ${(complaints.length > 0 ? complaints.slice(0, 5) : [stderr]).join('; ')}`
}

/** What a program said, and how it ended. Ends it after a minute. */
export async function run(
  program: string,
  args: string[],
  input = '',
): Promise<{ status: number | null; stdout: string; stderr: string }> {
  const child = spawn(program, args, { stdio: 'pipe', timeout: 60_000 })
  const ended = new Promise<number | null>((resolve, reject) => child.on('error', reject).on('close', resolve))
  child.stdin.on('error', () => child.stdin.destroy()) // it may have ended without reading on; how it ended is what counts
  child.stdin.end(input)
  const [stdout, stderr, status] = await Promise.all([text(child.stdout), text(child.stderr), ended])
  return { status, stdout, stderr }
}
