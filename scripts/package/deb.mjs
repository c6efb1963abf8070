// Makes a Debian package of a production tree: where each file goes, its control files, and dpkg-deb in a way that gives the same bytes again.

import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { chmodSync, cpSync, lutimesSync, lstatSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { architectures, productionTree } from './production-tree.mjs'

const LIBRARY = 'usr/lib/stillpoint'
const DOCS = 'usr/share/doc/stillpoint'
const UNITS = 'usr/lib/systemd/system'
const CONFIGURATION = 'etc/stillpoint/stillpoint.yaml'

const maintainer = () =>
  `${process.env.DEBFULLNAME ?? 'The Stillpoint project'} <${process.env.DEBEMAIL ?? 'stillpoint@example.org'}>`

const control = ({ version, architecture, installedKiB }) => `Package: stillpoint
Version: ${version}
Section: admin
Priority: optional
Architecture: ${architecture}
Maintainer: ${maintainer()}
Installed-Size: ${installedKiB}
Depends: libc6 (>= 2.28), libgcc-s1 (>= 4.2), libstdc++6 (>= 6), init-system-helpers (>= 1.54), systemd | systemd-standalone-sysusers | systemd-sysusers, systemd | systemd-standalone-tmpfiles | systemd-tmpfiles
Recommends: systemd
Suggests: libnbd-bin, qemu-utils
Description: backup appliance for block devices
 The daemon serves disks over NBD, remembers every write in dirty bitmaps, and
 makes point-in-time backups of several disks at one instant, while guests go
 on writing: full ones and increments, into deduplicating repositories on
 files or S3, or read by any program that speaks NBD.
 .
 Its commands, names and formats are those of QEMU's block layer. The Node.js
 that it runs on is part of the package.
`

const run = (command, args, options = {}) => {
  const { status, error, stdout, stderr } = spawnSync(command, args, { encoding: 'utf8', ...options })
  if (error) throw error
  if (status !== 0) throw new Error(`${command} ended with exit code ${status}: ${stderr}`)
  return stdout
}

/** Every file and folder below, parents first, by name. */
const walk = (folder, prefix = '') =>
  readdirSync(folder, { withFileTypes: true })
    .sort((a, b) => (a.name < b.name ? -1 : 1))
    .flatMap(entry => {
      const path = prefix + entry.name
      return entry.isDirectory() ? [path, ...walk(join(folder, entry.name), `${path}/`)] : [path]
    })

/** The newest change that is in the package, so that the same checkout gives the same bytes. */
export function sourceTime(root) {
  const given = process.env.SOURCE_DATE_EPOCH
  if (given !== undefined) return Number(given)
  const { status, stdout } = spawnSync('git', ['-C', root, 'log', '-1', '--format=%ct'], { encoding: 'utf8' })
  return status === 0 ? Number(stdout) : Math.floor(lstatSync(join(root, 'package-lock.json')).mtimeMs / 1000)
}

/** The release's version, or for what is between releases one that sorts before the next and by time. */
export function debianVersion(root) {
  const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
  const git = (...args) => spawnSync('git', ['-C', root, ...args], { encoding: 'utf8' })
  const commit = git('rev-parse', '--short=8', 'HEAD')
  if (commit.status !== 0 || git('tag', '--points-at', 'HEAD').stdout.split('\n').includes(`v${version}`)) return version
  const time = new Date(sourceTime(root) * 1000).toISOString().replaceAll(/[-:T]|\..*/g, '')
  return `${version}~${time}.${commit.stdout.trim()}`
}

const indented = text =>
  text
    .trimEnd()
    .split('\n')
    .map(line => (line.trim() === '' ? ' .' : ` ${line.trimEnd()}`))
    .join('\n')

function licenceOf(folder) {
  const name = readdirSync(folder)
    .sort()
    .find(file => /^(licen[cs]e|copying)(\.(txt|md))?$/i.test(file))
  return name ? readFileSync(join(folder, name), 'utf8') : ''
}

const holderIn = text =>
  text
    .split('\n')
    .find(line => /copyright\s+(\(c\)|©|\d)/i.test(line))
    ?.trim()

/** The licences of all that is in the package, in the form that Debian's tools read. */
function copyright(packages) {
  const parts = packages.map(({ name, version, license, from }) => {
    const text = licenceOf(from)
    const files = name.startsWith('node-linux-') ? `${LIBRARY}/bin/node` : `${LIBRARY}/node_modules/${name}/*`
    const short = name.startsWith('node-linux-') ? 'MIT-and-others' : `${license}-${name.replaceAll(/[^a-z0-9]+/gi, '-')}`
    return [
      `Files: ${files}`,
      `Comment: ${name} ${version}, from npm`,
      `Copyright: ${holderIn(text) ?? `the authors of ${name}`}`,
      `License: ${short}`,
      `${indented(text || `${license}, as its package.json says.`)}\n`,
    ].join('\n')
  })
  return [
    'Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nUpstream-Name: stillpoint\n',
    'Files: *\nCopyright: the authors of Stillpoint\nLicense: Apache-2.0\n In Debian, its full text is /usr/share/common-licenses/Apache-2.0.\n',
    ...parts,
  ].join('\n')
}

/** As gzip -9n. */
const packed = data => gzipSync(data, { level: 9 })

const LAUNCHER = `#!/bin/sh
# Starts stillpoint on the Node that it came with.
exec /${LIBRARY}/bin/node --disable-warning=ExperimentalWarning /${LIBRARY}/dist/src/main.js "$@"
`

/** Lays the package out in `stage`, but for DEBIAN/. */
function layOut({ root, stage, cpu, scratch, version, time, runtime }) {
  const put = (to, data) => {
    mkdirSync(join(stage, dirname(to)), { recursive: true })
    writeFileSync(join(stage, to), data)
  }
  const source = path => readFileSync(join(root, path))
  const packages = productionTree({ root, into: join(stage, LIBRARY), cpu, scratch, runtime })
  put('usr/bin/stillpoint', LAUNCHER)
  put(CONFIGURATION, source('scripts/package/debian/stillpoint.yaml'))
  for (const name of readdirSync(join(root, 'systemd'))) {
    if (/\.(service|socket|timer)$/.test(name)) put(`${UNITS}/${name}`, source(`systemd/${name}`))
  }
  put('usr/lib/sysusers.d/stillpoint.conf', source('systemd/stillpoint.sysusers'))
  put('usr/lib/tmpfiles.d/stillpoint.conf', source('systemd/stillpoint.tmpfiles'))
  for (const name of readdirSync(join(root, 'docs'))) {
    const manual = /\.([1-8])$/.exec(name)?.[1]
    if (manual) put(`usr/share/man/man${manual}/${name}.gz`, packed(source(`docs/${name}`)))
    else {
      const place = /\.md$|^(how-to|explanation)$/.test(name) ? 'docs' : 'examples'
      cpSync(join(root, 'docs', name), join(stage, DOCS, place, name), { recursive: true })
    }
  }
  put(`${DOCS}/README.md`, source('README.md'))
  put(`${DOCS}/NEWS.md.gz`, packed(source('CHANGELOG.md')))
  put(`${DOCS}/examples/stillpoint.example.yaml`, source('config/stillpoint.example.yaml'))
  put('usr/share/stillpoint/stillpoint.schema.json', source('config/stillpoint.schema.json'))
  put(`${DOCS}/copyright`, copyright(packages))
  const date = new Date(time * 1000).toUTCString().replace('GMT', '+0000')
  const change = `stillpoint (${version}) unstable; urgency=medium\n\n  * What has changed is in NEWS.md.gz.\n\n -- ${maintainer()}  ${date}\n`
  put(`${DOCS}/changelog.gz`, packed(change))
  put('usr/share/lintian/overrides/stillpoint', source('scripts/package/debian/lintian-overrides'))
  for (const [shell, to] of [
    ['bash', 'usr/share/bash-completion/completions/stillpoint'],
    ['zsh', 'usr/share/zsh/vendor-completions/_stillpoint'],
  ])
    put(to, run(join(root, 'bin/stillpoint'), ['completion', shell]))
}

/**
 * Makes the package in the folder `out`, and says where it is. `stage` and `scratch` are empty folders of the caller's; `fast` makes
 * a package that is not compressed, for trials, in seconds instead of minutes; without `runtime` the program finds no Node.
 */
export function buildDeb({
  root,
  out,
  architecture,
  stage,
  scratch,
  fast = false,
  runtime = true,
  version = debianVersion(root),
}) {
  const cpu = architectures[architecture]
  if (!cpu) throw new Error(`there is a package for ${Object.keys(architectures).join(' and ')}, and none for ${architecture}`)
  const time = sourceTime(root)
  layOut({ root, stage, cpu, scratch, version, time, runtime })

  const executable = new Set(['usr/bin/stillpoint', `${LIBRARY}/bin/node`])
  const paths = walk(stage)
  const isFolder = path => lstatSync(join(stage, path)).isDirectory()
  const files = paths.filter(path => !isFolder(path))
  const bytes = files.reduce(
    (sum, path) => sum + Math.ceil(lstatSync(join(stage, path)).size / 1024),
    paths.length - files.length,
  )
  const debian = join(stage, 'DEBIAN')
  mkdirSync(debian)
  writeFileSync(join(debian, 'control'), control({ version, architecture, installedKiB: bytes }))
  writeFileSync(join(debian, 'conffiles'), `/${CONFIGURATION}\n`)
  const md5 = path =>
    createHash('md5')
      .update(readFileSync(join(stage, path)))
      .digest('hex')
  writeFileSync(
    join(debian, 'md5sums'),
    files
      .filter(path => path !== CONFIGURATION)
      .map(path => `${md5(path)}  ${path}\n`)
      .join(''),
  )
  for (const script of ['postinst', 'prerm', 'postrm']) {
    cpSync(join(root, 'scripts/package/debian', script), join(debian, script))
    executable.add(`DEBIAN/${script}`)
  }
  for (const path of walk(stage).reverse()) {
    chmodSync(join(stage, path), isFolder(path) || executable.has(path) ? 0o755 : 0o644)
    lutimesSync(join(stage, path), time, time)
  }
  chmodSync(stage, 0o755)
  lutimesSync(stage, time, time)

  mkdirSync(out, { recursive: true })
  const deb = join(out, `stillpoint_${version}_${architecture}.deb`)
  // One thread: with more, what comes out depends on how many there are.
  const how = fast ? ['-Znone'] : ['-Zxz']
  run('dpkg-deb', ['--root-owner-group', '--threads-max=1', ...how, '--build', stage, deb], {
    env: { ...process.env, SOURCE_DATE_EPOCH: String(time) },
  })
  return deb
}
