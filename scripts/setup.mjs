// Makes a checkout ready: the npm packages, the build, and the programs of other people that tests and the demo use.
//
//     node scripts/setup.mjs [--for test|demo|bench]
//
// Runs on any Node from 18 on, without packages, since it is what brings them. It says nothing where there is nothing to do. A missing
// Debian package never stops it: where it may not install, it says which are missing and what is skipped without them.

import { spawnSync } from 'node:child_process'
import {
  accessSync,
  constants,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { delimiter, dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const MINUTE = 60_000

const say = text => console.error(`setup: ${text}`)
const give = (why, advice) => {
  say(`${why}${advice ? `\n       ${advice}` : ''}`)
  process.exit(1)
}

/** Debian's packages, the program in each that shows it is there, and what is lost without it. */
const packages = {
  'qemu-utils': { has: 'qemu-img', without: 'qemu-img and qemu-io judge nothing' },
  'qemu-system-common': { has: 'qemu-storage-daemon', without: 'qemu-storage-daemon judges nothing' },
  'libnbd-bin': { has: 'nbdcopy', without: 'nbdcopy and nbdinfo judge nothing' },
  e2fsprogs: { has: 'mkfs.ext4', without: 'there is no real file system to back up' },
  nbdkit: { has: 'nbdkit', without: 'no other NBD server is a client’s peer' },
  'python3-libnbd': { has: '/usr/lib/python3/dist-packages/nbd.py', without: 'libnbd judges nothing call by call' },
  fio: { has: 'fio', without: 'there is no load by fio' },
  openssl: { has: 'openssl', without: 'there are no certificates to try TLS with' },
  'nbd-client': { has: 'nbd-client', without: 'the kernel’s client judges nothing' },
  'nbd-server': { has: 'nbd-server', without: 'the oldest NBD server is no client’s peer' },
  'qemu-system-x86': { has: 'qemu-system-x86_64', without: 'no guest’s kernel uses the NBD server' },
  'busybox-static': { has: 'busybox', without: 'no guest’s kernel uses the NBD server' },
  radosgw: { has: 'radosgw', without: 'no real S3 store judges the target on S3' },
  'ceph-mon': { has: 'ceph-mon', without: 'radosgw does not run' },
  'ceph-osd': { has: 'ceph-osd', without: 'radosgw does not run' },
  prometheus: { has: 'promtool', without: 'promtool judges neither metrics nor alerts' },
  systemd: { has: 'systemd-analyze', without: 'systemd judges no calendar expression, and no unit' },
  zstd: { has: 'zstd', without: 'backups are not measured against it' },
  restic: { has: 'restic', without: 'backups are not measured against it' },
  borgbackup: { has: 'borg', without: 'backups are not measured against it' },
  'chromium-headless-shell': { has: 'chromium-headless-shell', without: 'no browser looks at the status page' },
  'man-db': { has: 'man', without: 'nobody looks at the man page' },
  zsh: { has: 'zsh', without: 'zsh does not judge its completion' },
}
const needs = {
  demo: ['qemu-utils', 'libnbd-bin', 'e2fsprogs'],
  bench: ['qemu-utils', 'qemu-system-common', 'fio', 'libnbd-bin', 'nbdkit', 'zstd', 'restic', 'borgbackup'],
  test: [
    'qemu-utils',
    'qemu-system-common',
    'nbdkit',
    'libnbd-bin',
    'python3-libnbd',
    'fio',
    'nbd-client',
    'nbd-server',
    'qemu-system-x86',
    'busybox-static',
    'openssl',
    'e2fsprogs',
    'man-db',
    'zsh',
    'systemd',
    'prometheus',
    'radosgw',
    'ceph-mon',
    'ceph-osd',
    'chromium-headless-shell',
  ],
}

/** Runs a program whose output is the user's to see. It gets no standard input, so it cannot ask and wait. */
function run(command, args, { called = command, timeout = 15 * MINUTE } = {}) {
  const { status, signal, error } = spawnSync(command, args, {
    cwd: root,
    stdio: ['ignore', 2, 2],
    timeout,
    killSignal: 'SIGTERM',
  })
  if (error) return `${called}: ${error.code === 'ETIMEDOUT' ? `not done after ${timeout / MINUTE} minutes` : error.message}`
  return status === 0 ? undefined : `${called} ended with ${signal ?? `exit code ${status}`}`
}

const quiet = (command, args) => spawnSync(command, args, { cwd: root, stdio: 'ignore' }).status === 0

// --- npm packages -----------------------------------------------------------------------------------------------------------------

/** Whether node_modules holds what the lock file says, by npm's own record of what it installed there. */
function packagesAreThere() {
  const record = join(root, 'node_modules/.package-lock.json')
  if (!existsSync(record)) return false
  let installed, wanted
  try {
    installed = JSON.parse(readFileSync(record, 'utf8')).packages
    wanted = JSON.parse(readFileSync(join(root, 'package-lock.json'), 'utf8')).packages
  } catch (error) {
    if (error instanceof SyntaxError) return false // a record that was cut off: install again
    throw error
  }
  for (const [path, { version, integrity, link, optional }] of Object.entries(wanted)) {
    if (!path.startsWith('node_modules/')) continue
    const found = installed[path]
    if (link ? !existsSync(join(root, path)) : !found && !optional) return false
    if (found && !link && (found.version !== version || found.integrity !== integrity)) return false
  }
  return Object.keys(installed).every(path => path in wanted)
}

function installPackages() {
  if (packagesAreThere() && quiet(join(root, 'scripts/on-node-24'), ['-e', '0'])) return
  say('npm ci: installs the npm packages, Node 24 among them; this takes a minute')
  // The npm that runs us, where one does: another may be first on PATH.
  const npm = process.env.npm_execpath?.endsWith('.js') ? [process.execPath, process.env.npm_execpath] : ['npm']
  // No package of ours needs its install script, and one that compiles could hang.
  const options = ['ci', '--ignore-scripts', '--include=dev', '--include=optional', '--no-audit', '--no-fund', '--loglevel=error']
  const failed = run(npm[0], [...npm.slice(1), ...options], { called: 'npm ci' })
  if (failed) give(failed, 'Is the npm registry within reach? Once it is, run the same command again; nothing else was changed.')
}

// --- the build --------------------------------------------------------------------------------------------------------------------

/** When a source, or the folder of one (a file may have gone), last changed. */
function newest(path) {
  const stat = statSync(path, { throwIfNoEntry: false })
  if (!stat) return 0
  if (!stat.isDirectory()) return /\.(ts|json)$/.test(path) ? stat.mtimeMs : 0
  const below = readdirSync(path).filter(name => name !== 'node_modules' && name !== 'dist')
  return Math.max(stat.mtimeMs, ...below.map(name => newest(join(path, name))))
}

function build() {
  const stamp = join(root, 'dist/.built') // holds the time at which the last build that succeeded began
  const sources = ['src', 'plugins', 'test', 'bench', 'nbd-client-ts/src', 'nbd-client-ts/test', 'nbd-client-ts/package.json']
  const inputs = [
    ...sources,
    'tsconfig.json',
    'tsconfig.base.json',
    'nbd-client-ts/tsconfig.json',
    'package.json',
    'package-lock.json',
  ]
  const changed = Math.max(...inputs.map(path => newest(join(root, path))))
  const built = statSync(stamp, { throwIfNoEntry: false })?.mtimeMs ?? 0
  if (built > changed) return
  const begun = new Date()
  say('compiles')
  const failed = run(join(root, 'scripts/on-node-24'), [join(root, 'node_modules/typescript-native/bin/tsc'), '--build'], {
    called: 'tsc',
  })
  if (failed) give(`the build failed: ${failed}`)
  mkdirSync(dirname(stamp), { recursive: true })
  writeFileSync(stamp, '')
  utimesSync(stamp, begun, begun)
}

// --- Debian packages --------------------------------------------------------------------------------------------------------------

const folders = [...(process.env.PATH ?? '').split(delimiter), '/usr/local/sbin', '/usr/sbin', '/sbin']

function isExecutable(path) {
  try {
    accessSync(path, constants.X_OK)
    return true
  } catch {
    return false
  }
}

const isThere = ({ has }) => (has.startsWith('/') ? existsSync(has) : folders.some(folder => isExecutable(join(folder, has))))

const missingOf = purpose => needs[purpose].filter(name => !isThere(packages[name]))

function aptGet(...args) {
  const env = { DEBIAN_FRONTEND: 'noninteractive', NEEDRESTART_MODE: 'a', LC_ALL: 'C' }
  // apt waits for dpkg's lock itself; for that of its lists it does not, so we do.
  for (let attempt = 1; ; attempt++) {
    const { status, stdout, stderr, error } = spawnSync('apt-get', ['-y', '-q', '-o', 'DPkg::Lock::Timeout=180', ...args], {
      stdio: ['ignore', 'pipe', 'pipe'],
      encoding: 'utf8',
      env: { ...process.env, ...env },
      timeout: 15 * MINUTE,
      maxBuffer: 1 << 28,
    })
    if (error) return error.code === 'ETIMEDOUT' ? 'apt-get was not done after 15 minutes' : error.message
    if (status === 0) return undefined
    if (!/could not get lock|is held by process/i.test(stderr) || attempt === 30)
      return (stderr.trim() || stdout.trim()).split('\n').slice(-3).join('\n       ')
    if (attempt === 1) say('waits for another apt-get to end')
    spawnSync('sleep', ['4'])
  }
}

function installDebianPackages(purpose) {
  let missing = missingOf(purpose)
  if (missing.length === 0) return
  let why
  if (process.getuid?.() !== 0) why = `as root: apt-get install --no-install-recommends ${missing.join(' ')}`
  else if (!folders.some(folder => isExecutable(join(folder, 'apt-get'))))
    why = 'this is no Debian (there is no apt-get); install what has these programs'
  else {
    say(`apt-get install ${missing.join(' ')}`)
    const install = () => aptGet('install', '--no-install-recommends', ...missing)
    // An image fresh from a registry has no lists at all, one that is older has lists of files that are gone.
    why = install() && (aptGet('update') ?? install())
    missing = missingOf(purpose)
    if (missing.length === 0) return
    why ??= 'apt-get did all it was asked to do, and the programs are still not on PATH'
  }
  say(`missing, and what is skipped without them:`)
  for (const name of missing) say(`  ${name}: ${packages[name].without}`)
  say(why)
}

/**
 * A kernel with its modules for a guest in QEMU, unpacked from Debian's package: this machine goes on with its own. test/helpers/guest.ts
 * looks for it here.
 */
function fetchGuestKernel() {
  const cache = join(root, 'node_modules/.cache')
  if (process.arch !== 'x64' || existsSync(join(cache, 'guest-kernel')) || !isThere({ has: 'apt-get' })) return
  say('downloads a kernel for guests')
  mkdirSync(cache, { recursive: true })
  const folder = mkdtempSync(join(cache, 'unpacked-'))
  try {
    const script = `
      name=$(apt-cache depends --important linux-image-cloud-amd64 | grep -o 'linux-image-[0-9].*' | head -n 1)
      apt-get -q download "\${name:?is not in the lists of apt}" && dpkg-deb -x "$name"_*.deb . && rm "$name"_*.deb`
    const { status, stderr, error } = spawnSync('sh', ['-c', script], { cwd: folder, encoding: 'utf8', timeout: 5 * MINUTE })
    if (status === 0) return renameSync(folder, join(cache, 'guest-kernel'))
    say(`missing: linux-image-cloud-amd64: no guest’s kernel uses the NBD server\n       ${(error?.message ?? stderr).trim()}`)
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

// ----------------------------------------------------------------------------------------------------------------------------------

const [option, purpose] = process.argv.slice(2)
if (option !== undefined && (option !== '--for' || !(purpose in needs)))
  give('usage: node scripts/setup.mjs [--for test|demo|bench]')
installPackages()
build()
if (purpose) installDebianPackages(purpose)
if (purpose === 'test') fetchGuestKernel()
