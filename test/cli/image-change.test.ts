// stillpoint image beside qemu-img: what it makes, copies and changes, with qemu-img as the judge.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { copyFileSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import t from 'tap'
import { CliWorker } from '../helpers/cli-worker.ts'
import { qemuIo as io } from '../helpers/image-zoo.ts'
import { scratchFolder } from '../helpers/qemu.ts'
import { attempt, missing, run } from '../helpers/tools.ts'

const skip = missing('qemu-img', 'qemu-io')
const MiB = 1 << 20

const stack = new AsyncDisposableStack()
t.teardown(() => stack.disposeAsync())
const worker = stack.use(new CliWorker())
const folder = await scratchFolder(stack)
const ours = (...args: string[]) => worker.run('image', ...args)
const theirs = (...args: string[]) => attempt('qemu-img', args)
if (!skip) await run('qemu-img', ['create', '-q', '-f', 'raw', `${folder}/plain.raw`, '4M'])

t.test('create makes what qemu-img create makes, and says the same', { skip }, async t => {
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', `${folder}/base.qcow2`, '3M'])
  await run('qemu-img', ['create', '-q', '-f', 'raw', `${folder}/base.raw`, '1M'])
  const path = `${folder}/new`
  for (const args of [
    ['PATH', '1000'],
    ['-f', 'raw', 'PATH', '1.5M'],
    ['-f', 'raw', '-o', 'preallocation=full', 'PATH', '1M'],
    ['-f', 'qcow2', 'PATH', '10G'],
    ['-f', 'qcow2', '-o', 'size=1M', 'PATH'],
    ['-f', 'qcow2', '-o', 'compat=0.10', 'PATH', '1T'],
    ['-f', 'qcow2', '-o', 'cluster_size=4k,refcount_bits=64', '-o', 'lazy_refcounts=on', 'PATH', '100M'],
    ['-f', 'qcow2', '-o', 'extended_l2=on,compression_type=zstd,compat=v3', 'PATH', '1M'],
    ['-f', 'qcow2', '-o', 'preallocation=metadata', 'PATH', '4M'],
    ['-f', 'qcow2', '-b', 'base.qcow2', '-F', 'qcow2', 'PATH'],
    ['-f', 'qcow2', '-o', 'backing_file=base.raw,backing_fmt=raw', 'PATH', '2M'],
    ['-f', 'qcow2', '-u', '-b', 'nope.qcow2', '-F', 'qcow2', 'PATH', '2M'],
    ['-f', 'qcow2', '-o', `data_file=${folder}/data,data_file_raw=on`, 'PATH', '2M'],
    ['-q', '-f', 'qcow2', 'PATH', '1M'],
    // refused by both
    ['-f', 'qcow2', 'PATH'],
    ['-f', 'qcow2', '-b', 'base.qcow2', 'PATH'],
    ['-f', 'qcow2', '-b', 'nope.qcow2', '-F', 'qcow2', 'PATH'],
    ['-f', 'qcow2', '-o', 'cluster_size=5000', 'PATH', '1M'],
    ['-f', 'qcow2', '-o', 'nonsense=1', 'PATH', '1M'],
    ['-f', 'raw', '-b', 'base.raw', '-F', 'raw', 'PATH', '1M'],
    ['-f', 'qcow2', 'PATH', '1Q'],
    ['-f', 'cow', 'PATH', '1M'],
  ]) {
    const words = args.map(word => (word === 'PATH' ? path : word))
    const facts = async (make: (...args: string[]) => ReturnType<typeof ours>) => {
      await run('rm', ['-f', path])
      const { code, stdout } = await make('create', ...words)
      if (code !== 0) return { code: 1 }
      const info = JSON.parse((await theirs('info', '--output=json', path)).stdout) as Record<string, unknown>
      delete info['actual-size']
      return { code, stdout, info, check: info['format'] === 'qcow2' && (await theirs('check', path)).stdout.split('\n')[0] }
    }
    const qemu = await facts(theirs)
    t.same(await facts(ours), qemu, args.join(' '))
    if (qemu.code !== 0) t.notOk(statSync(path, { throwIfNoEntry: false }), 'and leaves nothing behind')
  }
  t.match((await ours('create', '-f', 'qcow2', '-o', 'help', path)).stdout, /^Supported qcow2 options:\n {2}backing_file=<str>/)
})

t.test('resize does as qemu-img resize does, and keeps stored bitmaps', { skip }, async t => {
  for (const format of ['raw', 'qcow2']) {
    const before = `${folder}/before`
    await run('qemu-img', ['create', '-q', '-f', format, before, '4M'])
    await run('qemu-io', ['-f', format, '-c', 'write -P 1 0 64k', '-c', 'write -P 2 3M 64k', before])
    if (format === 'qcow2') await run('qemu-img', ['bitmap', '--add', before, 'b'])
    const facts = async (resize: typeof theirs, name: string, args: string[]) => {
      const image = `${folder}/${name}`
      copyFileSync(before, image)
      const { code, stdout } = await resize('resize', '-f', format, ...args.map(word => (word === 'PATH' ? image : word)))
      const info = JSON.parse((await theirs('info', '-f', format, '--output=json', image)).stdout) as Record<string, unknown>
      const filled = args.includes('--preallocation=full') && (info['actual-size'] as number) > 8 * MiB
      return { code: code === 0 ? 0 : 1, stdout, info: { ...info, filename: '', 'actual-size': 0 }, filled }
    }
    for (const args of [
      ['PATH', '8M'],
      ['--shrink', 'PATH', '-2M'],
      ['PATH', '-2M'],
      ['--preallocation=full', 'PATH', '+8M'],
      ['--preallocation=falloc', 'PATH', '+1M'],
      ['--shrink', 'PATH', '-5M'],
    ]) {
      const [mine, qemu] = await Promise.all([facts(ours, 'mine', args), facts(theirs, 'qemu', args)])
      t.same(mine, qemu, `${format} ${args.join(' ')}`)
      const compared = await theirs('compare', '-f', format, '-F', format, `${folder}/mine`, `${folder}/qemu`)
      t.equal(compared.stdout, 'Images are identical.\n', `${format} ${args.join(' ')}`)
      if (format === 'qcow2') t.equal((await theirs('check', '-q', `${folder}/mine`)).code, 0)
    }
  }
  const unclosed = `${folder}/unclosed.qcow2`
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', unclosed, '4M'])
  await run('qemu-img', ['bitmap', '--add', unclosed, 'b'])
  await attempt('qemu-io', ['-c', 'write 0 64k', '-c', 'abort', unclosed])
  // One after the other: each locks it.
  const mine = await ours('resize', unclosed, '8M')
  const qemu = await theirs('resize', unclosed, '8M')
  t.same([mine.code, qemu.code], [1, 1])
  t.match(qemu.stderr, /Bitmap 'b' is inconsistent and cannot be used/)
  t.match(mine.stderr, /Bitmap 'b' is inconsistent and cannot be used; delete it by 'stillpoint image bitmap --remove'/)
  t.match((await ours('resize', '--nonsense', `${folder}/mine`, '1M')).stderr, /unknown option '--nonsense'/)
  t.match((await ours('resize', `${folder}/mine`, '1M', '2M')).stderr, /too many arguments/)
})

/** What is dirty, as qemu-nbd says. */
const marks = async (image: string, name: string) => {
  const node = `driver=nbd,server.type=unix,server.path=${image}.sock,x-dirty-bitmap=qemu:dirty-bitmap:${name}`
  const server = run('qemu-nbd', ['-r', '-B', name, '-k', `${image}.sock`, '-f', 'qcow2', image])
  const mapped = await run('sh', [
    '-c',
    `while ! [ -S ${image}.sock ]; do sleep 0.05; done; exec qemu-img map --output=json --image-opts ${node}`,
  ])
  await server
  return (JSON.parse(mapped) as { start: number; length: number; data: boolean }[]).filter(({ data }) => !data)
}

t.test('bitmap changes bitmaps as qemu-img bitmap does', { skip }, async t => {
  const before = `${folder}/bitmaps`
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', before, '64M'])
  await run('qemu-img', ['bitmap', '--add', '-g', '32k', before, 'fine'])
  await run('qemu-img', ['bitmap', '--add', '-g', '1M', before, 'coarse'])
  await io(before, 'write 100k 1k', 'write 33M 2M')
  await run('qemu-img', ['bitmap', '--disable', before, 'fine'])
  await io(before, 'write 50M 1k')
  for (const calls of [
    [['--add', 'PATH', 'new']],
    [['--add', '--disable', '-g', '16k', 'PATH', 'new']],
    [['--remove', 'PATH', 'fine']],
    [['--clear', 'PATH', 'coarse']],
    [
      ['--enable', 'PATH', 'fine'],
      ['--disable', 'PATH', 'coarse'],
    ],
    [['--merge', 'fine', 'PATH', 'coarse']],
    [['--add', '--merge', 'coarse', '--merge', 'fine', 'PATH', 'new']],
    [['--merge', 'coarse', '-b', before, '-F', 'qcow2', 'PATH', 'fine']],
    // refused by both
    [['--add', 'PATH', 'fine']],
    [['--remove', 'PATH', 'nope']],
    [['--merge', 'nope', 'PATH', 'fine']],
    [['--add', '-g', '1000', 'PATH', 'new']],
    [['PATH', 'fine']],
    [['--add', 'PATH', 'x'.repeat(1024)]],
  ]) {
    const facts = async (change: typeof theirs, name: string) => {
      const image = `${folder}/${name}`
      copyFileSync(before, image)
      let failed = false
      for (const args of calls)
        if ((await change('bitmap', ...args.map(word => (word === 'PATH' ? image : word)))).code !== 0) failed = true
      const info = JSON.parse((await theirs('info', '--output=json', image)).stdout) as {
        'format-specific': { data: { bitmaps: { name: string }[] } }
      }
      const { bitmaps } = info['format-specific'].data
      const last = calls.at(-1)!.at(-1)!
      const there = bitmaps.some(({ name }) => name === last)
      return {
        failed,
        bitmaps: bitmaps.toSorted((a, b) => (a.name < b.name ? -1 : 1)),
        marks: there && !failed ? await marks(image, last) : [],
        check: (await theirs('check', '-q', image)).code,
      }
    }
    const [mine, qemu] = await Promise.all([facts(ours, 'mine'), facts(theirs, 'qemu')])
    t.same(mine, qemu, calls.flat().join(' ').slice(0, 80))
  }
})

t.test('bitmap --repair leaves what can be trusted, and nothing for qemu-img to complain about', { skip }, async t => {
  const image = `${folder}/repaired.qcow2`
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', image, '64M'])
  for (const name of ['good', 'bad', 'also-good']) await run('qemu-img', ['bitmap', '--add', image, name])
  const info = async () =>
    (
      JSON.parse((await theirs('info', '--output=json', image)).stdout) as {
        'format-specific': { data: { bitmaps?: { name: string }[] } }
      }
    )['format-specific'].data.bitmaps?.map(({ name }) => name)
  /** Of the entries of this name, older lists among them. */
  const harm = (name: string, change: (bytes: Buffer, at: number) => void) => {
    const bytes = readFileSync(image)
    for (let at = bytes.indexOf(name); at > 0; at = bytes.indexOf(name, at + 1)) change(bytes, at)
    writeFileSync(image, bytes)
  }
  harm('bad', (bytes, at) => bytes.writeUInt32BE(3, at - 12)) // in_use
  t.match((await ours('bitmap', '--clear', image, 'bad')).stderr, /Bitmap 'bad' is inconsistent and cannot be used/)
  const repaired = await ours('bitmap', '--repair', image)
  t.match(repaired.stdout, /Bitmap 'bad' was removed: .*\n2 bitmaps left/)
  t.same(await info(), ['good', 'also-good'])
  t.equal((await theirs('check', '-q', image)).code, 0)
  t.equal((await ours('bitmap', '--repair', image)).stdout, 'Nothing is wrong with the bitmaps of this image.\n')

  harm('also-good', (bytes, at) => bytes.writeUInt16BE(0xffff, at - 6)) // its length reaches beyond the list
  t.not((await theirs('info', image)).code, 0, 'qemu-img does not open it any more')
  t.match((await ours('bitmap', '--repair', image)).stdout, /The list of bitmaps was damaged/)
  t.equal((await theirs('info', image)).code, 0)
  t.ok([0, 3].includes((await theirs('check', '-q', image)).code!), 'at most leaks are left')
  t.equal((await ours('check', '-r', 'leaks', image)).code, 0)
})

t.test('what another program uses is not made anew, and is read only with -U', { skip }, async t => {
  const image = `${folder}/used.qcow2`
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', image, '1M'])
  const bytes = readFileSync(image)
  await using other = new AsyncDisposableStack()
  const qemu = spawn('qemu-io', ['-f', 'qcow2', image], { stdio: ['pipe', 'pipe', 'inherit'] })
  const gone = once(qemu, 'exit')
  other.defer(async () => void (await gone))
  other.defer(() => void qemu.stdin.end('quit\n'))
  await new Promise(resolve => qemu.stdout.once('data', resolve))
  for (const args of [
    ['create', '-f', 'qcow2', image, '5M'],
    ['create', image, '5M'],
    ['resize', image, '5M'],
    ['bitmap', '--add', image, 'b'],
    ['convert', '-O', 'qcow2', `${folder}/plain.raw`, image],
    ['info', image],
    ['map', image],
  ]) {
    const { code, stderr } = await ours(...args)
    t.equal(code, 11, args.join(' '))
    t.match(stderr, /Failed to get .* lock: the image .*used\.qcow2' is used by qemu-io \(process \d+\); stop that/)
  }
  t.equal((await ours('check', image)).code, 1)
  t.equal((await ours('compare', image, image)).code, 2)
  t.ok(readFileSync(image).equals(bytes), 'nothing was changed')
  for (const verb of ['info', 'map', 'check']) t.equal((await ours(verb, '-U', image)).code, 0, `${verb} -U`)
})
