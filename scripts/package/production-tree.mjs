// What of a checkout runs the program: the compiled code, the npm packages that it needs and no others, and the Node that runs them.

import { spawnSync } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'

/** Debian's names of architectures, and Node's. */
export const architectures = { amd64: 'x64', arm64: 'arm64' }

/** What lies in the folders of npm packages and no program reads: types, sources of what was compiled, tests, pages. Licences stay. */
const SUPERFLUOUS = /\.(ts|mts|cts|map|md|markdown|html|ico|flow|cc|hh|c|h|S|asm|inc|def)$|^(CNAME|CMakeLists.txt|\..*)$/i
const SUPERFLUOUS_FOLDERS = new Set(['test', 'tests', 'docs', 'doc', 'examples', 'example', 'benchmarks', 'benchmark'])
/** Whole folders of some packages that are nothing to us: sources, other forms of the same, what is built for browsers or another libc. */
const UNUSED = {
  koffi: ['vendor', 'lib', 'cnoke.cjs'],
  zod: ['src'],
  yaml: ['browser'],
  pino: ['build', 'bin.js', 'inc-version.sh', 'eslint.config.js', 'tsconfig.json'],
  undici: ['scripts'],
  '@koromix/koffi-linux-x64': ['musl_x64'],
  '@koromix/koffi-linux-arm64': ['musl_arm64'],
}

const suits = (list, name) => list === undefined || list.includes(name)

/** The packages of the lock file that run on such a machine, but for Node itself. */
export function productionPackages(root, cpu) {
  const { packages } = JSON.parse(readFileSync(join(root, 'package-lock.json'), 'utf8'))
  return Object.entries(packages)
    .filter(([path, { dev, link }]) => path.startsWith('node_modules/') && !dev && !link)
    .filter(([, { os, cpu: cpus }]) => suits(os, 'linux') && suits(cpus, cpu))
    .map(([path, { version, license }]) => ({ path, name: path.slice('node_modules/'.length), version, license }))
    .sort((a, b) => (a.path < b.path ? -1 : 1))
}

/** A folder whose node_modules hold what such a machine needs: the checkout's own, or one that npm fills. */
function packagesFor(root, cpu, scratch) {
  if (productionPackages(root, cpu).every(({ path }) => existsSync(join(root, path, 'package.json')))) return root
  for (const name of ['package.json', 'package-lock.json', '.npmrc', 'nbd-client-ts/package.json'])
    cpSync(join(root, name), join(scratch, name))
  const npm = process.env.npm_execpath?.endsWith('.js') ? [process.execPath, process.env.npm_execpath] : ['npm']
  const options = [
    'ci',
    '--omit=dev',
    '--ignore-scripts',
    '--os=linux',
    `--cpu=${cpu}`,
    '--libc=glibc',
    '--no-audit',
    '--no-fund',
    '--loglevel=error',
  ]
  const { status, error } = spawnSync(npm[0], [...npm.slice(1), ...options], { cwd: scratch, stdio: ['ignore', 2, 2] })
  if (error) throw error
  if (status !== 0)
    throw new Error(`npm ci brought no packages for ${cpu} (exit code ${status}); is the npm registry within reach?`)
  return scratch
}

function copyPackage(from, to, name) {
  const unused = new Set((UNUSED[name] ?? []).map(path => join(from, path)))
  cpSync(from, to, {
    recursive: true,
    filter: path => {
      if (path === from) return true
      const last = basename(path)
      if (unused.has(path) || last === 'node_modules' || SUPERFLUOUS.test(last)) return false
      return !(dirname(path) === from && SUPERFLUOUS_FOLDERS.has(last))
    },
  })
}

/** Compiled code without what is there for debuggers and editors. */
const onlyCode = path => !/\.(d\.ts|map|tsbuildinfo)$/.test(path)

function removeOrphans(folder, sources) {
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name)
    if (entry.isDirectory()) {
      removeOrphans(path, join(sources, entry.name))
      if (readdirSync(path).length === 0) rmSync(path, { recursive: true })
    } else if (!existsSync(join(sources, entry.name.replace(/\.js$/, '.ts')))) rmSync(path)
  }
}

/**
 * Fills `into`, and says which packages are in it. `cpu` is Node's name of the architecture, `scratch` an empty folder.
 * bin/node is the runtime; dist/, package.json and node_modules/ lie to one another as in a checkout.
 */
export function productionTree({ root, into, cpu, scratch, runtime: withRuntime }) {
  if (!existsSync(join(root, 'dist/src/main.js'))) throw new Error(`${root} is not built: npm run build`)
  const found = packagesFor(root, cpu, scratch)
  const packages = productionPackages(root, cpu)
  const runtime = `node-linux-${cpu}`
  for (const { path, name } of packages) if (name !== runtime) copyPackage(join(found, path), join(into, path), name)
  mkdirSync(join(into, 'bin'), { recursive: true })
  if (withRuntime) cpSync(join(found, 'node_modules', runtime, 'bin/node'), join(into, 'bin/node'))
  for (const part of ['dist/src', 'dist/plugins'])
    cpSync(join(root, part), join(into, part), { recursive: true, filter: onlyCode })
  // The status page's own files, which no compiler touches.
  cpSync(join(root, 'src/web/page'), join(into, 'src/web/page'), { recursive: true })
  const client = join(into, 'node_modules/nbd-client-ts')
  cpSync(join(root, 'nbd-client-ts/dist/src'), join(client, 'dist/src'), { recursive: true, filter: onlyCode })
  cpSync(join(root, 'nbd-client-ts/package.json'), join(client, 'package.json'))
  // Compiled code whose source is gone stays in dist/; what is installed is what there are sources of.
  for (const [folder, source] of [
    [join(into, 'dist/src'), join(root, 'src')],
    [join(into, 'dist/plugins'), join(root, 'plugins')],
    [join(client, 'dist/src'), join(root, 'nbd-client-ts/src')],
  ])
    removeOrphans(folder, source)
  const { name, version, description, license, type, engines, dependencies } = JSON.parse(
    readFileSync(join(root, 'package.json'), 'utf8'),
  )
  writeFileSync(
    join(into, 'package.json'),
    `${JSON.stringify({ name, version, description, license, type, engines, dependencies }, null, 2)}\n`,
  )
  return packages.map(one => ({ ...one, from: join(found, one.path) }))
}
