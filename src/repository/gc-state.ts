// The collector's state, gc/state, which writers read before they begin: the epoch, what is condemned, and which index objects count.

import { z } from 'zod'
import { canonicalJson, parseJson } from './canonical-json.ts'
import { putIf } from './conditional.ts'
import { Damaged, NoRepository } from './faults.ts'
import { NotThere, type Target } from './target.ts'

export const GC_STATE = 'gc/state'

const count = z.number().int().min(0)

const state = z.object({
  version: z.literal(1),
  /** Goes up with every plan. */
  epoch: count,
  /** Goes up with every change, so that no two states are alike. */
  revision: count,
  /** Who writes next: any id. */
  collector: z.string().nullable(),
  /** The plan in force. `condemned`: nothing new may rely on its packs, but what older sessions commit may. `final`: nothing does. */
  plan: z.object({ key: z.string(), phase: z.enum(['condemned', 'final']), since: z.iso.datetime() }).nullable(),
  /** Index objects of epochs up to `through` count only when they are named here; those of later epochs all count. */
  index: z.object({ through: z.number().int().min(-1), keys: z.array(z.string()) }),
})
export type GcState = z.infer<typeof state>

export const initialState: GcState = {
  version: 1,
  epoch: 0,
  revision: 0,
  collector: null,
  plan: null,
  index: { through: -1, keys: [] },
}

const plan = z.object({
  version: z.literal(1),
  id: z.string(),
  epoch: count,
  packs: z.array(z.string().regex(/^(packs|meta)\//)),
})
/** The keys of the packs that a plan is about. */
export type GcPlan = z.infer<typeof plan>

export async function readState(target: Target, signal?: AbortSignal): Promise<{ state: GcState; tag: string }> {
  try {
    const { body, tag } = await target.get(GC_STATE, { signal })
    return { state: parseJson(body, state, GC_STATE), tag }
  } catch (error) {
    if (!(error instanceof NotThere)) throw error
    throw new NoRepository(
      `${target.location}: the repository has no ${GC_STATE}; it was not made to the end, or somebody removed it`,
    )
  }
}

/** PreconditionFailed when another collector was first. */
export async function swapState(
  target: Target,
  next: GcState,
  before: { state: GcState; tag: string },
  { cas, signal }: { cas: boolean; signal?: AbortSignal | undefined },
) {
  const state = { ...next, revision: before.state.revision + 1 }
  const tag = await putIf(target, GC_STATE, canonicalJson(state), { ifMatch: before.tag }, { cas, signal })
  return { state, tag }
}

export async function readPlan(target: Target, key: string, signal?: AbortSignal): Promise<GcPlan> {
  return parseJson((await target.get(key, { signal })).body, plan, key)
}

/** The plan in force. One without packs where there is none; undefined where it is lost or damaged, of which no data are the worse. */
export async function findPlan(
  target: Target,
  { plan: named }: GcState,
  signal?: AbortSignal,
): Promise<Pick<GcPlan, 'packs'> | undefined> {
  if (!named) return { packs: [] }
  try {
    return await readPlan(target, named.key, signal)
  } catch (error) {
    if (error instanceof NotThere || error instanceof Damaged) return undefined
    throw error
  }
}

export async function writePlan(target: Target, value: GcPlan, signal?: AbortSignal) {
  const key = `gc/plan-${String(value.epoch).padStart(10, '0')}-${value.id}`
  await target.put(key, canonicalJson(value), { signal }) // its name is its own
  return key
}
