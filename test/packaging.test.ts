// The packages for Debian and for npm: what is in them, and that it runs. scripts/package-judge installs the former for real.

import { readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { missing, run } from './helpers/tools.ts'

const root = fileURLToPath(new URL('../../', import.meta.url))
const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { version: string }

t.test(
  'a Debian package has all that the program needs, and runs from where it was unpacked',
  { skip: missing('dpkg-deb') },
  async t => {
    const folder = t.testdir({ out: {}, root: {} })
    // Whoever makes it may keep files to himself; what is installed is for everybody.
    const command = 'umask 077; exec "$0" "$1" --fast --without-runtime --version 9.8.7 --out "$2"'
    const words = [process.execPath, join(root, 'scripts/package.mjs'), join(folder, 'out')]
    const deb = (await run('sh', ['-c', command, ...words], { timeoutMs: 100_000 })).trim()

    t.equal((await run('dpkg-deb', ['-f', deb, 'Version'])).trim(), '9.8.7')
    const listed = (await run('dpkg-deb', ['-c', deb])).trim().split('\n')
    const paths = new Set(listed.map(line => line.split(/\s+/)[5]!))
    for (const path of [
      'etc/stillpoint/stillpoint.yaml',
      'usr/lib/systemd/system/stillpoint.service',
      'usr/lib/systemd/system/stillpoint-nbd.socket',
      'usr/lib/sysusers.d/stillpoint.conf',
      'usr/lib/tmpfiles.d/stillpoint.conf',
      'usr/lib/stillpoint/dist/plugins/s3/index.js',
      'usr/lib/stillpoint/src/web/page/index.html',
      'usr/lib/stillpoint/node_modules/nbd-client-ts/dist/src/index.js',
      'usr/share/man/man1/stillpoint.1.gz',
      'usr/share/bash-completion/completions/stillpoint',
      'usr/share/zsh/vendor-completions/_stillpoint',
      'usr/share/doc/stillpoint/copyright',
    ])
      t.ok(paths.has(`./${path}`), path)
    t.same(
      listed.filter(line => !/^[-d]rw[-x]r-[-x]r-[-x] root\/root /.test(line)),
      [],
      'all of it is root’s, and everybody may read it',
    )
    t.same(
      [...paths].filter(path => /\.(ts|map)$|\/(tap|prettier|typescript|oxlint)\/|\/dist\/(test|bench)\//.test(path)),
      [],
      'nothing in it is for its makers only',
    )

    const unpacked = join(folder, 'root')
    await run('dpkg-deb', ['-x', deb, unpacked])
    const library = join(unpacked, 'usr/lib/stillpoint')
    const stillpoint = (...args: string[]) =>
      run(process.execPath, [join(library, 'dist/src/main.js'), ...args], { cwd: unpacked })
    t.equal(await stillpoint('--version'), `stillpoint ${version}\n`)
    t.match(await stillpoint('doctor'), 'koffi is loaded')
    t.match(
      await stillpoint('daemon', '--check', '--config', join(unpacked, 'etc/stillpoint/stillpoint.yaml')),
      'is good: 0 machines',
    )
    for (const script of ['postinst', 'prerm', 'postrm']) {
      const file = join(root, 'scripts/package/debian', script)
      await run('sh', ['-n', file])
      t.ok(statSync(file).mode & 0o100, script)
    }
  },
)

t.test('a package for npm has the program, its NBD client, and no tests', { skip: missing('npm') }, async t => {
  const [packed] = JSON.parse(
    await run('npm', ['pack', '--dry-run', '--json', '--ignore-scripts', '--offline'], { cwd: root }),
  ) as {
    files: { path: string }[]
    bundled: string[]
  }[]
  const paths = packed!.files.map(({ path }) => path)
  t.same(packed!.bundled, ['nbd-client-ts'])
  for (const path of [
    'bin/stillpoint',
    'scripts/on-node-24',
    'dist/src/main.js',
    'dist/plugins/file/index.js',
    'docs/stillpoint.1',
  ])
    t.ok(paths.includes(path), path)
  t.ok(paths.includes('node_modules/nbd-client-ts/dist/src/index.js'))
  t.ok(paths.includes('src/web/page/index.html'))
  t.same(
    paths.filter(path => /(^|\/)test\/|^bench|\.map$|\.tsbuildinfo$|^dist\/package/.test(path) && !path.startsWith('docs/')),
    [],
  )
})
