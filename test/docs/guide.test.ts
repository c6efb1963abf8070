// The tutorial, and the page about a VM, followed to the letter, each in a folder of its own.

import { readFile, writeFile } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { scratchFolder } from '../helpers/control.ts'
import { follow, Follower, StillpointFunction, stepsOf } from '../helpers/guide.ts'
import { installed, PATH } from '../helpers/installed.ts'
import { qemuImg } from '../helpers/qemu.ts'
import { missing } from '../helpers/tools.ts'

t.test(
  'who follows the tutorial sees what it says',
  { skip: missing('bash', 'qemu-img', 'qemu-io', 'mkfs.ext4', 'debugfs') },
  async t => {
    await using stack = new AsyncDisposableStack()
    const folder = await scratchFolder(stack)
    const stillpoint = stack.use(new StillpointFunction({ socket: `${folder}/first/control.sock` }))
    const follower = stack.use(new Follower(folder, { env: { PATH }, prelude: await stillpoint.listen() }))
    const steps = await stepsOf('tutorial.md')
    t.ok(steps.filter(({ shown }) => shown).length > 8)
    t.same(await follow(steps, follower, `${folder}/first`), [])
  },
)

/** A guest without an operating system: its first sector counts in sector 2048, 18 times a second, until the BIOS says that a write has failed. */
const COUNTING = Buffer.from(
  [
    '31c0 8ed8 8ec0 8ed0 bc007c fb', // xor ax, ax; ds = es = ss = ax; sp = 0x7c00; sti
    'ff060080 b443 b000 be217c cd13', // inc word [0x8000]; ax = 0x4300: write; si = what and where; int 0x13
    '7203 f4 ebee f4 ebfd', // where it has failed halt for ever; else halt until the clock ticks, and again
    '1000 0100 0080 0000 0008000000000000', // 16 bytes: 1 sector, from 0:0x8000, to 2048
  ]
    .join('')
    .replaceAll(' ', ''),
  'hex',
)

const COUNTED = 2048 * 512

t.test(
  'a VM goes on over a backup and a restart of the daemon, as the page says',
  { skip: missing('bash', 'qemu-system-x86_64', 'qemu-img') },
  async t => {
    await using stack = new AsyncDisposableStack()
    const site = await installed(stack, 'how-to/qemu-vm.md')
    const disk = Buffer.alloc(8 << 20)
    COUNTING.copy(disk)
    disk.writeUInt16LE(0xaa55, 510)
    await writeFile(`${site.folder}/raw`, disk)
    await qemuImg('convert', '-f', 'raw', '-O', 'qcow2', `${site.folder}/raw`, `${site.folder}/srv/disks/web-root.qcow2`)
    const count = async () => {
      await using client = await site.nbd('web/root')
      return (await client.read(COUNTED, 2)).readUInt16LE()
    }
    /** Waits until the guest has written more than that. */
    const counted = async (more: number) => {
      for (;;) {
        const now = await count()
        if (now > more) return now
        await sleep(50)
      }
    }
    let before = 0
    const wrong = await site.follow({
      'systemctl restart stillpoint': async () => {
        before = await counted(0)
        await site.stop()
        await site.start()
        t.ok((await counted(await count())) > before, 'the guest goes on')
      },
    })
    t.same(wrong, [])
    const after = await count()
    await site.run(`stillpoint restore local web/latest root ${site.folder}/restored.raw`)
    const restored = (await readFile(`${site.folder}/restored.raw`)).readUInt16LE(COUNTED)
    t.ok(before < restored && restored <= after, `${before} < ${restored} <= ${after}`)
  },
)
