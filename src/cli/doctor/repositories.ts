// The repositories: whether they can be read and written, keep their promises, and when somebody last looked whether they are well.

import { Fault, messageOf } from '../../base/errors.ts'
import { formatSpan } from '../format.ts'
import { withConfig } from './commands.ts'
import { quoted, type Examination, type Finding, type Patient } from './finding.ts'

/** A store that does not answer is not waited for any longer. */
const TIMEOUT_MS = 60_000
const DAY = 24 * 3_600_000
/** As the alert has it. */
const VERIFIED_WITHIN_MS = 35 * DAY

export const repositories: Examination = {
  name: 'repositories',
  about: 'repositories',
  async examine(patient) {
    const findings: Finding[] = []
    for (const name of Object.keys(patient.settings?.repositories ?? {}))
      for (const finding of await look(patient, name)) findings.push({ of: name, ...finding })
    return findings
  },
}

async function look(patient: Patient, name: string): Promise<Finding[]> {
  const [{ NoRepository }, { clockSkew }] = await Promise.all([import('../../repository/faults.ts'), import('./clock-skew.ts')])
  const settings = patient.settings!.repositories[name]!
  // First, since a store refuses everything where it is too much.
  const skew = await clockSkew(settings)
  try {
    return [...skew, ...(await lookInto(patient, name))]
  } catch (error) {
    if (!(error instanceof Fault) && (error as Error).name !== 'TimeoutError') throw error
    if (error instanceof NoRepository)
      return [
        ...skew,
        {
          health: 'bad',
          found: 'there is none yet',
          costs: 'backups into it fail',
          mend: withConfig(patient, `repo init ${quoted(name)}`),
        },
      ]
    return [
      ...skew,
      {
        health: 'bad',
        found: messageOf(error),
        costs: 'backups into it and restores from it fail',
        mend: `mend that, or what ${patient.file} says of it; then: ${withConfig(patient, `repo stats ${quoted(name)}`)}`,
      },
    ]
  }
}

async function lookInto(patient: Patient, name: string): Promise<Finding[]> {
  const [{ openPlace, openRepository }, { createLog }, { lastChecks }, { ownerOf }, { probe }] = await Promise.all([
    import('../../push/open-place.ts'),
    import('../../base/log.ts'),
    import('../../repository/last-checks.ts'),
    import('../../repository/owner.ts'),
    import('../../repository/probe.ts'),
  ])
  const signal = AbortSignal.timeout(TIMEOUT_MS)
  await using place = await openPlace(name, patient.settings!.repositories[name]!, createLog('error'))
  const repository = await openRepository(place, signal)
  const { target } = repository
  const { cas, why } = await probe(target, signal)
  const owner = await ownerOf(repository, signal)
  const checks = await lastChecks(target, signal)
  const points = await repository.pointKeys(undefined, signal)
  const findings: Finding[] = []
  if (repository.cas && !cas)
    findings.push({
      health: 'bad',
      found: `its store does not compare and swap any more: ${why}`,
      costs: 'where several hosts write to it, or one writes while another collects, backups are lost',
      mend: 'use the store at the address at which the repository was made, and ask whoever runs it what has changed',
    })
  if (owner && owner.id !== repository.me.id)
    findings.push({
      health: 'warning',
      found: `its store cannot compare and swap, so one host may write to it, and that is ${owner.host}`,
      costs: 'backups of this host into it fail',
      mend: `${withConfig(patient, `repo take-over ${quoted(name)}`)} (once ${owner.host} writes to it no more)`,
    })
  const damaged = checks.find(check => check.damaged > 0)
  if (damaged)
    findings.push({
      health: 'bad',
      found: `the last check (${damaged.level}) has found damage: packs or restore points that are not whole: ${damaged.damaged}`,
      costs: 'restore points that need them cannot be restored as a whole',
      mend: `${withConfig(patient, `repo check ${quoted(name)} --level ${damaged.level} --quarantine`)} (the next backups store anew what their disks still hold of it; gc then deletes what is damaged, and a check finds it no more)`,
    })
  const last = Math.max(...checks.filter(({ level }) => level !== 'quick').map(({ time }) => time.getTime()))
  const age = Date.now() - last
  if (points.length > 0 && !(age < VERIFIED_WITHIN_MS))
    findings.push({
      health: 'warning',
      found: Number.isFinite(age)
        ? `nobody has read it to see whether it is well for ${formatSpan(age)}`
        : 'it was never verified',
      costs: 'that a store has lost or changed something is only found when it is needed',
      mend: withConfig(patient, `repo check ${quoted(name)} --level scrub`),
    })
  if (findings.length > 0) return findings
  const verified = Number.isFinite(age) ? `verified ${formatSpan(Math.max(0, age))} ago` : 'empty'
  return [{ health: 'good', found: `${target.location}: ${verified}${cas ? '' : '; one host may write to it'}` }]
}
