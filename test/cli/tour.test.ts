// The README's tour, word for word, in a shell that stops at the first command that fails.

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import t from 'tap'
import { environment, LAUNCHER } from '../helpers/stillpoint.ts'
import { attempt, missing, run } from '../helpers/tools.ts'

const readme = readFileSync(join(dirname(LAUNCHER), '../README.md'), 'utf8')
const tour = /\n## A short tour\n(.*?)\n## /s.exec(readme)?.[1] ?? ''
const blocks = (language: string) =>
  [...tour.matchAll(new RegExp(`\n\`\`\`${language}\n(.*?)\`\`\``, 'gs'))].map(([, block]) => block!)

t.test('the tour works as it is written', { skip: missing('bash', 'qemu-img', 'qemu-io', 'nbdinfo', 'nbdcopy') }, async t => {
  // A folder with a short name: the sockets are in it.
  const folder = mkdtempSync(join(tmpdir(), 'tour-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  const [yaml, ...others] = blocks('yaml')
  t.same(others, [], 'there is one configuration')
  writeFileSync(`${folder}/stillpoint.yaml`, yaml!)
  const scripts = blocks('sh')
  t.ok(scripts.length >= 5)
  const guest = `qemu-io -f raw -c 'write -P 7 1M 64k' 'nbd+unix:///db/root?socket=nbd.sock'`
  const script = [
    'set -eo pipefail',
    // Whatever happens, the daemon ends with the script.
    `trap 'kill $(jobs -p) 2>/dev/null && wait' EXIT`,
    ...scripts.map(block => (block.includes('--since full') ? `${guest}\n${block}` : block)),
    'stillpoint qmp quit',
    'wait',
  ].join('\n')
  const { code, stdout, stderr } = await attempt('bash', ['-c', script], {
    cwd: folder,
    env: { ...environment(), PATH: `${dirname(LAUNCHER)}:${process.env['PATH']}` },
    timeoutMs: 90_000,
  })
  t.equal(code, 0, stderr)
  t.notMatch(stderr, /^stillpoint: /m)
  t.match(stdout, /^stillpoint\.yaml is good/, 'the configuration is good')
  t.match(stdout, /^root +1 GiB +64 KiB +qemu:dirty-bitmap:backup-root +nbd\+unix:\/\/\/more\/root\?socket=/m)
  t.match(stdout, /^ +1048576 +65536 +1 +dirty$/m, 'nbdinfo sees what the guest wrote, and nothing else')
  t.match(stdout, '"start": 1048576, "length": 65536, "depth": 0, "present": false')
  t.match(stdout, '"db.root"', 'the nodes are listed')
  await run('qemu-img', ['compare', '-f', 'qcow2', '-F', 'raw', `${folder}/data.qcow2`, `${folder}/db-data.raw`])
})
