// The commands that mend what the doctor finds, as one can paste them.

import { dirname, join, resolve } from 'node:path'
import { DROP_INS } from '../../settings/load.ts'
import { fallbackSocket } from '../socket.ts'
import { DEFAULT_FILE } from '../commands/daemon.ts'
import { quoted, type Patient } from './finding.ts'

/** For the daemon of this configuration. */
export function ofDaemon({ settings }: Patient, command: string) {
  const socket = settings?.control.socket
  return socket === undefined || socket === fallbackSocket
    ? `stillpoint ${command}`
    : `stillpoint --socket ${quoted(socket)} ${command}`
}

/** For one that reads the configuration itself. */
export const withConfig = ({ file }: Patient, command: string) =>
  resolve(file) === DEFAULT_FILE ? `stillpoint ${command}` : `stillpoint ${command} --config ${quoted(file)}`

/** Says something beside the configuration, and has it read where a daemon runs. */
export function dropIn(patient: Patient, name: string, text: string) {
  const folder = join(dirname(resolve(patient.file)), DROP_INS)
  const then = patient.daemon ? ofDaemon(patient, 'config reload') : withConfig(patient, 'daemon --check')
  return `mkdir -p ${quoted(folder)} && printf '%s\\n' ${quoted(text)} > ${quoted(join(folder, `${name}.yaml`))} && ${then}`
}
