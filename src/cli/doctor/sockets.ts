// Who may open the sockets: whoever may is the master of every disk.

import { stat } from 'node:fs/promises'
import { dirname } from 'node:path'
import { strerror } from '../../base/errors.ts'
import { quoted, type Examination, type Finding, type Patient } from './finding.ts'

const OTHERS_WRITE = 0o002
const STICKY = 0o1000

interface Socket {
  readonly what: string
  readonly path: string
  /** Who may open it, as the configuration has it. */
  readonly mode: number
  readonly costs: string
}

const MASTER = 'any program on this machine may read, overwrite and delete every disk and backup'
const GUEST = 'any program on this machine may read and overwrite every disk that is exported there'
const READER = 'any program on this machine may read how machines and disks are called and how they do'

export const sockets: Examination = {
  name: 'sockets',
  about: 'permissions of sockets',
  async examine(patient) {
    const findings: Finding[] = []
    for (const socket of socketsOf(patient)) findings.push(...(await look(socket)))
    return findings
  },
}

function socketsOf({ settings }: Patient): Socket[] {
  if (!settings) return []
  const { control, nbd, metrics, web } = settings
  return [
    ...(control.socket === undefined ? [] : [{ what: 'control', path: control.socket, mode: 0o660, costs: MASTER }]),
    ...nbd.flatMap(place =>
      'unix' in place && !place.unix.startsWith('\0') ? [{ what: 'nbd', path: place.unix, mode: place.mode, costs: GUEST }] : [],
    ),
    ...(metrics && 'unix' in metrics ? [{ what: 'metrics', path: metrics.unix, mode: 0o660, costs: READER }] : []),
    ...(web && 'unix' in web.place ? [{ what: 'web', path: web.place.unix, mode: 0o660, costs: READER }] : []),
  ]
}

async function look({ what, path, mode, costs }: Socket): Promise<Finding[]> {
  const folder = dirname(path)
  try {
    const around = await stat(folder)
    if (around.mode & OTHERS_WRITE && !(around.mode & STICKY))
      return [
        {
          health: 'warning',
          of: what,
          found: `${folder} may be written by everybody, who may put a socket of their own there`,
          costs,
          mend: `chmod o-w ${quoted(folder)}`,
        },
      ]
    const found = await stat(path)
    if (found.mode & ~mode & OTHERS_WRITE)
      return [
        {
          health: 'warning',
          of: what,
          found: `${path} may be opened by everybody (mode ${(found.mode & 0o777).toString(8)})`,
          costs,
          mend: `chmod ${mode.toString(8)} ${quoted(path)}`,
        },
      ]
    return [{ health: 'good', of: what, found: `${path}, mode ${(found.mode & 0o777).toString(8)}` }]
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === undefined) throw error
    if (code === 'ENOENT') return [{ health: 'good', of: what, found: `${path} is not there: no daemon has it open` }]
    return [
      {
        health: 'warning',
        of: what,
        found: `${path}: ${strerror(error)}`,
        costs: 'this user cannot ask the daemon anything',
        mend: `run this as root, or join the group of ${path} and log in again`,
      },
    ]
  }
}
