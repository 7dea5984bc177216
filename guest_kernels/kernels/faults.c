/* faults.c: a kernel that provokes exceptions, in itself and in user mode, and looks at what it gets.
 *
 * Words of the command line choose a variant: `pae` the paging part with PAE tables, `io` port access from user mode, `step` single
 * steps, `triple` a triple fault, from which no kernel comes back. Without a word: everything else.
 */
#include "faults.h"
#include "../lib/console.h"
#include "../lib/descriptors.h"
#include "../lib/interrupts.h"
#include "../lib/multiboot.h"
#include "../lib/trap.h"

static void paging(int pae)
{
    report_paging(pae);
    report_demand_paging(pae);
}

void main(void)
{
    descriptors_setup();
    descriptors_spoil();
    pic_setup(); /* all masked: sti is safe */
    for (u8 vector = BREAKPOINT; vector <= BOUND_RANGE; vector++)
        gate_set(vector, SEGMENT_PRESENT | SEGMENT_DPL(3) | GATE_INTERRUPT);
    gate_set(SYSTEM_CALL, SEGMENT_PRESENT | SEGMENT_DPL(3) | GATE_INTERRUPT);

    if (argument("triple")) {
        printf("loading an empty IDT\n");
        triple_fault();
    } else if (argument("io")) {
        report_user_io();
    } else if (argument("step")) {
        report_single_steps();
    } else if (argument("pae")) {
        paging(1);
    } else {
        report_kernel_exceptions();
        report_user_exceptions();
        /* Paging is on by now, for user mode; PAE can be chosen only while it is off, but this part does not change the format. */
        paging(0);
    }
}
