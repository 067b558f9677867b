# The ledger guest: a program without an operating system that notices when its machine has not been carried over whole.
#
# Every vCPU keeps a ledger of its own: in each round it checks that all pages of its region hold what the last round
# wrote, that registers, vector registers and memory agree, and then writes the next round. A consistent image of the
# machine goes on with the very next instruction and never sees a difference; a torn one does, and the guest says so.
# 32-bit protected mode without paging, so that it runs where nested virtualization runs nothing else.
#
# Checked                                                          Kind in a CORRUPT line
#   a page of the region (a word of each)                          page      index: page
#   memory that never changes, a part in each tick, in turn        fill      index: page
#   round in a register against memory; round, sum, tick in XMM    register, vector, checksum, clock
#   sum over all vCPUs' rounds, under a lock                       total
#   the disk record before this one and the one to be replaced     disk      index: slot, found and expected: record
#   and when they were written                                     disktick  index: slot, found and expected: tick
#   a virtio disk's ring against what was asked of it              queue     index: disk
#   an exception                                                   fault     index: vector, found: EIP
#
# On the first serial port, a line each:
#   BOOT                                          once
#   CPUS <n>                                      once, when all are up
#   T <tick of vCPU 0> [<tick of vCPU 1> ...]     every LINE_EVERY ticks of vCPU 0; all ticks are driven by timers
#   R <round of vCPU 0> [...]                     every 256 ticks: work done (a round is a tick unless BUSY)
#   DISKS <n>                                     once, when it writes to any
#   D <records on disk 0> [...]                   every 64 ticks: written since this boot
#   CORRUPT <kind> <vCPU> <index> <found> <expected>   at once, and again every 256 ticks: the first one a vCPU met
#   DISKERROR <slot>                              a disk command failed; it is tried again
#   BYE | REBOOT                                  before the guest powers off or resets itself
#
# Commands, from serial input or the keyboard (`virsh send-key DOMAIN KEY_Q`): q powers off, r resets, c spoils a page
# (to see that it is noticed). The ACPI power button (`virsh shutdown`) powers off as well.
#
# Disks: every virtio disk on the first PCI bus (up to four, in the order of their addresses) that bears the mark, driven
# through its ring and polled; without any, the primary IDE master if there is one, by bus-master DMA. Others, and virtio
# disks without the mark, are left alone: a boot disk that is not replicated does no harm.
#   sector 62              "LDGW": the mark (build.sh WRITES=1, ledger-tool mark), for virtio disks only
#   sector 63              "LDGS", generation: raised at each boot
#   sectors 64 to 1087     record k in slot k mod 1024: "LDGR", generation, k, tick, then k up to the end
# Record k goes to each disk in turn before record k+1 goes to any. Before it is written, slot k-1 is read and must hold
# record k-1, and slot k must hold k-1024 (or nothing of this generation), both whole and with the tick that memory has
# noted for the slot. So a disk that is not of the same moment as the RAM is noticed:
#   CORRUPT disk 0 S k-1025 k-1      behind the RAM: a write that the guest was told of is missing
#   CORRUPT disk 0 S k k-1024        ahead of it: a write from a future that was given up is there
# Found 4294967295 stands for nothing of this generation, 4294967294 for half a record; slot S of disk n is called
# n * 1024 + S. One write ahead stays unnoticed when its slot had been looked at already: it is then repeated as it was.
# With BULK_KIB each record is followed by a large write to virtio disks (of memory that never changes), which nobody checks.
#
# The image is a bootable disk and a multiboot kernel at once (for <kernel>, when a guest without disks is wanted).

.ifndef PAGES
.set PAGES, 112                 # of each vCPU's region, written and checked in every round
.endif
.ifndef HZ
.set HZ, 250                    # ticks a second, 19 or more
.endif
.ifndef LINE_EVERY
.set LINE_EVERY, 1
.endif
.ifndef BUSY
.set BUSY, 0                    # 1: rounds without a rest between ticks, not one a tick
.endif
.ifndef FILL_MIB
.set FILL_MIB, 1                # memory filled at boot with a pattern that does not compress
.endif

.ifndef RECORDS
.set RECORDS, 4                 # at most, on each virtio disk in a tick
.endif
.ifndef FLUSH_EVERY
.set FLUSH_EVERY, 64            # records, a power of two
.endif
.ifndef BULK_KIB
.set BULK_KIB, 0                # to write besides with each record, in one request, a power of two, at most FILL_MIB
.endif
.ifndef BULK_MIB
.set BULK_MIB, 32               # of each disk, from its first MiB on, that these go to in turn, a power of two
.endif
.ifndef PATIENCE
.set PATIENCE, 10               # seconds that a disk may take for a request before its ring counts as CORRUPT
.endif

.set MAX_CPUS,        4
.set MAX_DISKS,       4
.set LOAD_ADDRESS,    0x100000  # where the program runs
.set STAGING,         0x8000    # where the boot sector reads it to
.set TRAMPOLINE,      0x7000    # start of the other vCPUs, in real mode
.set IDT,             0x180000
.set pattern,         0x184000  # 8 KiB
.set CPU_BLOCKS,      0x190000  # 4 KiB each
.set STACK_TOPS,      0x1a1000  # 4 KiB each
.set DISK_BLOCKS,     0x1b0000  # 4 KiB each, and three times as much behind them
.set DISK_RINGS,      0x1c0000  # RING_SIZE each
.set CLEARED_END,     0x1e0000  # IDT up to here is zeroed at boot (a reset keeps the RAM)
.set FILL,            0x200000
.set REGIONS,         FILL + FILL_MIB * 0x100000
.set SLOTS,           1024
.set FIRST_SLOT,      64
.set MARK,            0x5747444c
.set RECORD_MAGIC,    0x5247444c
.set SUPER_MAGIC,     0x5347444c
.set UNROLLED,        16        # pages to a turn of the loops; PAGES is a multiple of it
.set LAPIC,           0xfee00000
.set COM1,            0x3f8
.set PM,              0x600     # where SeaBIOS puts the ACPI registers
.set TIMER_VECTOR,    0x20
.set APIC_TIMER_VECTOR, 0x40

# A vCPU's block; EBX points to it and EBP holds the round, everywhere below.
.set ROUND,     0
.set SUM,       4
.set TICK,      8
.set REGION,    12
.set TICKED,    16              # set by the timer's interrupt
.set COUNTED,   20              # rounds entered in `total`
.set ID,        24
.set REPORTED,  28              # tick + 1 of the last CORRUPT line: one a tick is enough
.set BAD_KIND,  32              # the first mismatch, 0 for none
.set BAD_INDEX, 36
.set BAD_FOUND, 40
.set BAD_EXPECTED, 44
.set VECTOR,    0x80            # on its way to or from an XMM register
.set LINE,      0x100           # buffer for a line

# A disk's block, which ESI points to. What the device writes has a page of its own that the guest seldom touches: there
# nothing of the guest's hides a write of the device that was not carried over.
.set WRITTEN,   0               # records
.set NUMBER,    4
.set PORT,      8               # of its first register; 0: the IDE disk
.set GENERATION, 12
.set CAN_FLUSH, 16
.set QUEUE_SIZE, 20
.set RING,      24
.set USED,      28              # part of the ring
.set REQUESTS,  32
.set STARTED,   36              # tick of the last request
.set HEADER,    64              # of a virtio request
.set PRD,       80              # of an IDE request
.set SECTOR_IN, 0x4000
.set STATUS,    0x4200          # of a virtio request
.set SECTOR_OUT, 0x8000
.set SLOT_TICKS, 0xc000         # of the record in each slot
.set MAX_QUEUE, 1024
.set RING_SIZE, 0x8000

.text

# --- boot sector, at 0x7c00 ----------------------------------------------------------------------------------------

.code16
.globl _start
_start:
        cli
        cld
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %ss
        movw    $0x7000, %sp
        sti
        movw    $(packet - _start + 0x7c00), %si
        movb    $0x42, %ah              # extended read, from the drive that the BIOS left in %dl
        int     $0x13
        jc      2f
        cli
        lgdtl   boot_gdt_pointer - _start + 0x7c00
        movl    %cr0, %eax
        orb     $1, %al
        movl    %eax, %cr0
        ljmpl   $8, $(boot32 - _start + 0x7c00)
2:      movw    $COM1, %dx              # there is no screen to see a message on
        movb    $'E', %al
        outb    %al, %dx
        hlt
        jmp     2b

.code32
boot32: movw    $16, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movl    $STAGING, %esi
        movl    $LOAD_ADDRESS, %edi
        movl    $((program_end - program) / 4 + 1), %ecx
        rep movsl
        movl    $start32, %eax
        jmp     *%eax

.balign 8
packet: .byte   16, 0
        .word   (program_end - program + 511) / 512
        .word   STAGING, 0
        .quad   1
boot_gdt:
        .quad   0, 0x00cf9a000000ffff, 0x00cf92000000ffff
boot_gdt_pointer:
        .word   23
        .long   boot_gdt - _start + 0x7c00
        .org    510
        .word   0xaa55

# --- multiboot header ----------------------------------------------------------------------------------------------
program:
multiboot:
        .long   0x1badb002, 0x00010000, -(0x1badb002 + 0x00010000)
        .long   multiboot, program, 0, 0, start32

# --- start ---------------------------------------------------------------------------------------------------------
gdt:    .quad   0, 0x00cf9a000000ffff, 0x00cf92000000ffff
gdt_pointer:
        .word   23
        .long   gdt
idt_pointer:
        .word   256 * 8 - 1
        .long   IDT

.macro load_segments
        movw    $16, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    %ax, %fs
        movw    %ax, %gs
.endm

start32:
        cli
        cld
        lgdt    gdt_pointer
        ljmp    $8, $1f
1:      load_segments
        movl    $STACK_TOPS, %esp
        movl    $IDT, %edi
        movl    $((CLEARED_END - IDT) / 4), %ecx
        xorl    %eax, %eax
        rep stosl
        call    fill_interrupt_table
        call    start_serial
        call    start_timer
        movl    $CPU_BLOCKS, %ebx
        call    start_cpu
        sti
        movl    $text_boot, %esi
        call    print_text
        call    fill_memory
        call    start_power_button
        call    start_other_cpus
        call    start_disks
        call    print_cpus
        jmp     rounds

# KVM's instruction emulator, which runs all of this guest on some hosts, knows no `movd`: so by way of memory.
.macro to_vector register:req           # EAX, four times
        movl    %eax, VECTOR(%ebx)
        movl    %eax, VECTOR + 4(%ebx)
        movl    %eax, VECTOR + 8(%ebx)
        movl    %eax, VECTOR + 12(%ebx)
        movdqu  VECTOR(%ebx), %xmm\register
.endm
.macro from_vector register:req         # EAX: its highest part
        movdqu  %xmm\register, VECTOR(%ebx)
        movl    VECTOR + 12(%ebx), %eax
.endm

# EBX: this vCPU's block, ID set. Writes round 0.
start_cpu:
        lidt    idt_pointer
        movl    %cr0, %eax
        andl    $~0x0c, %eax            # no emulated FPU, no task switched
        orl     $0x02, %eax
        movl    %eax, %cr0
        movl    %cr4, %eax
        orl     $0x600, %eax            # SSE
        movl    %eax, %cr4
        movl    ID(%ebx), %eax
        imull   $(PAGES * 4096), %eax
        addl    $REGIONS, %eax
        movl    %eax, REGION(%ebx)
        xorl    %ebp, %ebp
        movl    %ebp, ROUND(%ebx)
        movl    %ebp, %eax
        to_vector 5                     # tick
        to_vector 6                     # sum
        to_vector 7                     # round
        jmp     stamp

# --- the rounds, the same on every vCPU ----------------------------------------------------------------------------
rounds:
.if BUSY == 0
        cli
        cmpl    $0, TICKED(%ebx)
        jne     1f
        sti                             # takes effect after hlt: no interrupt is lost in between
        hlt
        jmp     rounds
1:      sti
.endif
        call    check
        incl    %ebp
        movl    %ebp, ROUND(%ebx)
        movl    %ebp, %eax
        to_vector 7
        from_vector 6
        roll    $1, %eax
        xorl    %ebp, %eax
        to_vector 6
        movl    %eax, SUM(%ebx)
        call    stamp
        call    check_total
        xorl    %eax, %eax
        xchgl   TICKED(%ebx), %eax
        testl   %eax, %eax
        jz      rounds
        call    tick
        jmp     rounds

.macro mismatch kind:req                # FOUND in EAX, EXPECTED in EDX, index in ECX
        movl    $\kind, %esi
        call    report
.endm

.macro expect kind:req
        cmpl    %edx, %eax
        je      9f
        mismatch \kind
9:
.endm

check:  xorl    %ecx, %ecx
        movl    ROUND(%ebx), %eax
        movl    %ebp, %edx
        expect  kind_register
        from_vector 7
        expect  kind_vector
        from_vector 6
        movl    SUM(%ebx), %edx
        expect  kind_checksum
        call    page_words
1:
.set page, 0
.rept UNROLLED
        cmpl    %ebp, page * 4096(%edi)
        jne     3f
.set page, page + 1
.endr
2:      addl    $(UNROLLED * 4096), %edi
        decl    %ecx
        jnz     1b
        ret
3:      pushal                          # name the first such page of these
        subl    $(PAGES / UNROLLED), %ecx
        negl    %ecx
        imull   $UNROLLED, %ecx
4:      movl    (%edi), %eax
        movl    %ebp, %edx
        cmpl    %edx, %eax
        jne     5f
        addl    $4096, %edi
        incl    %ecx
        jmp     4b
5:      mismatch kind_page
        popal
        jmp     2b

# A page's word of this round: another one in each round, so that in time the whole page is written.
page_words:                             # -> EDI the first page's word, ECX how many times UNROLLED pages
        movl    %ebp, %edi
        andl    $1023, %edi
        shll    $2, %edi
        addl    REGION(%ebx), %edi
        movl    $(PAGES / UNROLLED), %ecx
        ret

stamp:  call    page_words
1:
.set page, 0
.rept UNROLLED
        movl    %ebp, page * 4096(%edi)
.set page, page + 1
.endr
        addl    $(UNROLLED * 4096), %edi
        decl    %ecx
        jnz     1b
        ret

# One round more in everybody's total; in between nobody else may look.
check_total:
        movl    $total_lock, %edi
        call    lock
        incl    COUNTED(%ebx)
        incl    total
        movl    CPU_BLOCKS + COUNTED, %edx
        addl    CPU_BLOCKS + 0x1000 + COUNTED, %edx
        addl    CPU_BLOCKS + 0x2000 + COUNTED, %edx
        addl    CPU_BLOCKS + 0x3000 + COUNTED, %edx
        movl    total, %eax
        movl    $0, total_lock
        xorl    %ecx, %ecx
        expect  kind_total
        ret

lock:   movl    $1, %eax
        xchgl   (%edi), %eax
        testl   %eax, %eax
        jz      2f
1:      pause
        cmpl    $0, (%edi)
        jne     1b
        jmp     lock
2:      ret

tick:   from_vector 5
        movl    TICK(%ebx), %edx
        xorl    %ecx, %ecx
        expect  kind_clock
        incl    TICK(%ebx)
        movl    TICK(%ebx), %eax
        to_vector 5
        testl   $0xff, %eax
        jnz     1f
        cmpl    $0, BAD_KIND(%ebx)
        je      1f
        call    print_mismatch
1:      cmpl    $0, ID(%ebx)
        jne     2f
        call    check_fill
        call    print_ticks
        call    print_rounds
        call    print_records
        call    run_disks
        jmp     commands
2:      ret

# --- memory that never changes -------------------------------------------------------------------------------------
# Page p: its own address, then 1023 words of `pattern`, from word (p mod 1024) + 1 on.
fill_memory:
        movl    $pattern, %edi          # xorshift32
        movl    $2048, %ecx
        movl    $1, %eax
1:      movl    %eax, %edx
        shll    $13, %edx
        xorl    %edx, %eax
        movl    %eax, %edx
        shrl    $17, %edx
        xorl    %edx, %eax
        movl    %eax, %edx
        shll    $5, %edx
        xorl    %edx, %eax
        stosl
        loop    1b
        movl    $FILL, %edi
2:      cmpl    $REGIONS, %edi
        jae     3f
        call    pattern_of_page
        movl    %edi, (%edi)
        addl    $4, %edi
        movl    $1023, %ecx
        rep movsl
        jmp     2b
3:      ret

pattern_of_page:                        # EDI page -> ESI its second word
        movl    %edi, %esi
        shrl    $10, %esi
        andl    $0xffc, %esi
        addl    $(pattern + 4), %esi
        ret

check_fill:                             # one page's address and one of 11 parts of its words
.if FILL_MIB > 0
        movl    TICK(%ebx), %eax
        xorl    %edx, %edx
        movl    $(FILL_MIB * 256), %ecx
        divl    %ecx
        movl    %edx, %edi
        shll    $12, %edi
        addl    $FILL, %edi
        call    pattern_of_page
        xorl    %edx, %edx
        movl    $11, %ecx
        divl    %ecx
        imull   $(93 * 4), %edx, %edx
        movl    (%edi), %eax
        cmpl    %edi, %eax
        jne     2f
        leal    4(%edi, %edx), %edi
        addl    %edx, %esi
        movl    $93, %ecx
        repe cmpsl
        je      3f
        subl    $4, %edi
        movl    (%edi), %eax
        movl    -4(%esi), %edx
        jmp     4f
2:      movl    %edi, %edx
4:      movl    %edi, %ecx
        subl    $FILL, %ecx
        shrl    $12, %ecx
        mismatch kind_fill
3:
.endif
        ret

# --- mismatches ----------------------------------------------------------------------------------------------------
# ESI kind, ECX index, EAX found, EDX expected; keeps all registers.
report: pushal
        cmpl    $0, BAD_KIND(%ebx)
        jne     1f
        movl    %ecx, BAD_INDEX(%ebx)
        movl    %eax, BAD_FOUND(%ebx)
        movl    %edx, BAD_EXPECTED(%ebx)
        movl    %esi, BAD_KIND(%ebx)
1:      pushl   TICK(%ebx)
        incl    (%esp)
        popl    %edi
        cmpl    %edi, REPORTED(%ebx)
        je      2f
        movl    %edi, REPORTED(%ebx)
        call    print_corrupt
2:      popal
        ret

print_mismatch:
        movl    BAD_KIND(%ebx), %esi
        movl    BAD_INDEX(%ebx), %ecx
        movl    BAD_FOUND(%ebx), %eax
        movl    BAD_EXPECTED(%ebx), %edx
print_corrupt:
        pushl   %edx
        pushl   %eax
        pushl   %ecx
        pushl   ID(%ebx)
        pushl   %esi
        movl    $text_corrupt, %esi
        leal    LINE(%ebx), %edi
        call    put_text
        popl    %esi
        call    put_text
        movl    $4, %ecx
1:      movb    $' ', %al
        stosb
        popl    %eax
        pushl   %ecx
        call    put_number
        popl    %ecx
        loop    1b
        jmp     end_line

# --- lines ---------------------------------------------------------------------------------------------------------
print_ticks:
.if LINE_EVERY > 1
        movl    TICK(%ebx), %eax
        xorl    %edx, %edx
        movl    $LINE_EVERY, %ecx
        divl    %ecx
        testl   %edx, %edx
        jnz     1f
.endif
        movb    $'T', %dl
        movl    $(CPU_BLOCKS + TICK), %esi
        movl    cpus, %ecx
        jmp     print_counters
1:      ret

print_rounds:
        testl   $0xff, TICK(%ebx)
        jnz     1b
        movb    $'R', %dl
        movl    $(CPU_BLOCKS + ROUND), %esi
        movl    cpus, %ecx
        jmp     print_counters

print_records:
        testl   $0x3f, TICK(%ebx)
        jnz     1b
        movl    disks, %ecx
        jecxz   1b
        movb    $'D', %dl
        movl    $(DISK_BLOCKS + WRITTEN), %esi
print_counters:                         # DL letter, ESI the first of the ECX counters, a page apart
        leal    LINE(%ebx), %edi
        movb    %dl, %al
        stosb
1:      movb    $' ', %al
        stosb
        movl    (%esi), %eax
        addl    $0x1000, %esi
        pushl   %ecx
        call    put_number
        popl    %ecx
        loop    1b
        jmp     end_line

print_cpus:
        movl    $text_cpus, %esi
        leal    LINE(%ebx), %edi
        call    put_text
        movl    cpus, %eax
        call    put_number
        jmp     end_line

print_text:                             # ESI
        leal    LINE(%ebx), %edi
        call    put_text
end_line:                               # EDI: behind the last byte
        movb    $'\n', %al
        stosb
        movl    %edi, %ecx
        leal    LINE(%ebx), %esi
        subl    %esi, %ecx
        movl    $serial_lock, %edi
        call    lock
1:      movw    $(COM1 + 5), %dx
2:      inb     %dx, %al
        testb   $0x20, %al
        jz      2b
        movw    $COM1, %dx
        movl    $16, %edi               # the UART's queue: one look at the line status for so many bytes
3:      outsb
        decl    %ecx
        jz      4f
        decl    %edi
        jnz     3b
        jmp     1b
4:      movl    $0, serial_lock
        ret

put_text:                               # ESI -> EDI
        lodsb
        testb   %al, %al
        jz      1f
        stosb
        jmp     put_text
1:      ret

put_number:                             # EAX, decimal -> EDI
        xorl    %ecx, %ecx
        pushl   %esi
        movl    $10, %esi
1:      xorl    %edx, %edx
        divl    %esi
        pushl   %edx
        incl    %ecx
        testl   %eax, %eax
        jnz     1b
2:      popl    %eax
        addb    $'0', %al
        stosb
        loop    2b
        popl    %esi
        ret

start_serial:
        movl    $serial_setup, %esi
1:      movzwl  (%esi), %edx
        testl   %edx, %edx
        jz      2f
        movb    2(%esi), %al
        outb    %al, %dx
        addl    $3, %esi
        jmp     1b
2:      ret

.macro setup port, value
        .word   \port
        .byte   \value
.endm
serial_setup:
        setup   COM1 + 1, 0             # no interrupts
        setup   COM1 + 3, 0x80
        setup   COM1 + 0, 1             # 115200 baud
        setup   COM1 + 1, 0
        setup   COM1 + 3, 0x03          # 8N1
        setup   COM1 + 2, 0xc7          # queues on
        setup   COM1 + 4, 0x03
        .word   0

# --- interrupts ----------------------------------------------------------------------------------------------------
# KVM's emulator knows no `iret` in protected mode either. EFLAGS but for IF first; after sti one more instruction runs
# before the next interrupt, so the stack does not grow.
.macro return_from_interrupt
        pushl   8(%esp)
        andl    $~0x200, (%esp)
        popfl
        sti
        ret     $8
.endm

timer_interrupt:
        incl    CPU_BLOCKS + TICKED
        pushl   %eax
        movb    $0x20, %al
        outb    %al, $0x20
        popl    %eax
        return_from_interrupt

apic_timer_interrupt:
        incl    TICKED(%ebx)            # EBX never holds anything else on these vCPUs
        movl    $0, LAPIC + 0xb0
ignored_interrupt:
        return_from_interrupt

.balign 8
faults:
.set vector, 0
.rept 32
        pushl   $vector
        jmp     fault
        .balign 8
.set vector, vector + 1
.endr
fault:  popl    %ecx
        popl    %eax                    # EIP, or the error code with EIP behind it
        cmpl    $LOAD_ADDRESS, %eax
        jae     1f
        popl    %eax
1:      xorl    %edx, %edx
        mismatch kind_fault
2:      cli
        hlt
        jmp     2b

fill_interrupt_table:
        movl    $IDT, %edi
        movl    $256, %ecx
        movl    $ignored_interrupt, %eax
1:      call    put_gate
        loop    1b
        movl    $IDT, %edi
        movl    $32, %ecx
        movl    $faults, %eax
2:      call    put_gate
        addl    $8, %eax
        loop    2b
        movl    $timer_interrupt, %eax
        movl    $(IDT + TIMER_VECTOR * 8), %edi
        call    put_gate
        movl    $apic_timer_interrupt, %eax
        movl    $(IDT + APIC_TIMER_VECTOR * 8), %edi
put_gate:                               # EAX handler, EDI gate, moves on to the next
        movl    %eax, %edx
        andl    $0xffff, %edx
        orl     $0x00080000, %edx
        movl    %edx, (%edi)
        movl    %eax, %edx
        movw    $0x8e00, %dx
        movl    %edx, 4(%edi)
        addl    $8, %edi
        ret

start_timer:
        movl    $timer_setup, %esi
1:      lodsw
        movb    %ah, %dl
        testb   %dl, %dl
        jz      2f
        movzbl  %dl, %edx
        outb    %al, %dx
        jmp     1b
2:      ret
timer_setup:                            # value, port
        .byte   0x11, 0x20, TIMER_VECTOR, 0x21, 4, 0x21, 1, 0x21, 0xfe, 0x21    # only the timer
        .byte   0x11, 0xa0, TIMER_VECTOR + 8, 0xa1, 2, 0xa1, 1, 0xa1, 0xff, 0xa1
        .byte   0x34, 0x43, (1193182 / HZ) & 0xff, 0x40, (1193182 / HZ) >> 8, 0x40
        .byte   0, 0

# --- the other vCPUs -----------------------------------------------------------------------------------------------
start_other_cpus:
        movw    $0x510, %dx             # fw_cfg tells how many there are
        movw    $5, %ax
        outw    %ax, %dx
        incl    %edx
        inb     %dx, %al
        movzbl  %al, %ecx
        inb     %dx, %al
        testb   %al, %al                # no fw_cfg, or far more than we take
        jnz     4f
        cmpl    $MAX_CPUS, %ecx
        jbe     1f
        movl    $MAX_CPUS, %ecx
1:      cmpl    $1, %ecx
        jbe     4f
        pushl   %ecx
        movl    $trampoline, %esi
        movl    $TRAMPOLINE, %edi
        movl    $(trampoline_end - trampoline), %ecx
        rep movsb
        movl    $0x000c4500, LAPIC + 0x300      # INIT to all others
        movl    $5, %ecx
        call    wait_ticks
        movl    $(0x000c4600 + (TRAMPOLINE >> 12)), LAPIC + 0x300
        movl    $2, %ecx
        call    wait_ticks
        movl    $(0x000c4600 + (TRAMPOLINE >> 12)), LAPIC + 0x300
        popl    %eax
        movl    $(2 * HZ), %edx         # two seconds, then we go on with those that came
2:      cmpl    %eax, cpus_up
        jae     3f
        movl    $1, %ecx
        call    wait_ticks
        decl    %edx
        jnz     2b
3:      movl    cpus_up, %eax
        movl    %eax, cpus
        movl    $1, cpus_may_start
4:      ret

wait_ticks:                             # ECX; on the first vCPU, before its rounds
1:      hlt
        cmpl    $0, TICKED(%ebx)
        je      1b
        movl    $0, TICKED(%ebx)
        loop    1b
        ret

.code16
trampoline:
        cli
        lgdtl   %cs:(gdt_copy - trampoline)
        movl    %cr0, %eax
        andl    $0x9fffffff, %eax       # caches on: INIT leaves them off
        orb     $1, %al
        movl    %eax, %cr0
        ljmpl   $8, $other_cpu
gdt_copy:
        .word   23
        .long   gdt
trampoline_end:
.code32

other_cpu:
        cld
        load_segments
        movl    $1, %eax
        lock xaddl %eax, cpus_taken
        cmpl    $MAX_CPUS, %eax
        jae     3f
        movl    %eax, %ecx
        shll    $12, %ecx
        leal    CPU_BLOCKS(%ecx), %ebx
        leal    STACK_TOPS(%ecx), %esp
        movl    %eax, ID(%ebx)
        call    start_cpu
        lock incl cpus_up
1:      pause
        cmpl    $0, cpus_may_start
        je      1b
        movl    $0x1ff, LAPIC + 0xf0                            # on
        movl    $0x10000, LAPIC + 0x350                         # the timer chip is the first vCPU's
        movl    $0xb, LAPIC + 0x3e0                             # not divided
        movl    $(0x20000 + APIC_TIMER_VECTOR), LAPIC + 0x320   # periodic
        movl    $(1000000000 / HZ), LAPIC + 0x380               # QEMU's and KVM's timers count nanoseconds
        sti
        jmp     rounds
3:      hlt
        jmp     3b

# --- disks ---------------------------------------------------------------------------------------------------------
# One request is under way at a time. Disks take turns: record k goes to each of them before record k+1 goes to any.

.set READ, 0                            # commands, as virtio numbers them
.set WRITE, 1
.set FLUSH, 4
.set READ_LAST, 0                       # disk_step: slot k-1, slot k (both to be checked), the write of record k, a flush
.set READ_SLOT, 1
.set WRITE_SLOT, 2
.set FLUSH_DISK, 3
.set WRITE_BULK, 4                      # after the write of record k

start_disks:
        xorl    %ecx, %ecx
1:      xorl    %esi, %esi
        call    pci_address
        inl     %dx, %eax
        cmpl    $0x10011af4, %eax       # virtio block device, legacy or transitional
        jne     2f
        call    start_virtio
2:      incl    %ecx
        cmpl    $256, %ecx
        jb      1b
        movl    disks, %eax
        testl   %eax, %eax
        jnz     3f
        call    start_ide
        movl    disks, %eax
        testl   %eax, %eax
        jz      4f
3:      movl    $DISK_BLOCKS, disk
        movl    $READ_SLOT, disk_step   # there is no record before the first
        movl    $text_disks, %esi
        leal    LINE(%ebx), %edi
        call    put_text
        movl    disks, %eax
        call    put_number
        jmp     end_line
4:      ret

pci_address:                            # ECX device and function on bus 0, ESI register -> DX data port
        movl    %ecx, %eax
        shll    $8, %eax
        leal    0x80000000(%eax, %esi), %eax
        movw    $0xcf8, %dx
        outl    %eax, %dx
        movw    $0xcfc, %dx
        ret

new_disk:                               # -> ESI its block, ring empty
        movl    disks, %ecx
        movl    %ecx, %esi
        shll    $12, %esi
        addl    $DISK_BLOCKS, %esi
        movl    %esi, disk
        movl    %ecx, NUMBER(%esi)
        movl    %ecx, %edi
        shll    $15, %edi
        addl    $DISK_RINGS, %edi
        movl    %edi, RING(%esi)
        xorl    %eax, %eax
        movl    %eax, PORT(%esi)
        movl    %eax, CAN_FLUSH(%esi)
        movl    %eax, REQUESTS(%esi)
        movl    $(RING_SIZE / 4), %ecx
        rep stosl
        ret

open_disk:                              # ESI: raises its generation; carry: failed
        movl    $(FIRST_SLOT - 1), %eax
        movl    $READ, %ecx
        call    disk_now
        jc      2f
        movl    $1, %eax
        cmpl    $SUPER_MAGIC, SECTOR_IN(%esi)
        jne     1f
        addl    SECTOR_IN + 4(%esi), %eax
1:      movl    %eax, GENERATION(%esi)
        movl    $SUPER_MAGIC, SECTOR_OUT(%esi)
        movl    %eax, SECTOR_OUT + 4(%esi)
        movl    $(FIRST_SLOT - 1), %eax
        movl    $WRITE, %ecx
        call    disk_now
        jc      2f
        incl    disks
2:      ret

# EAX sector, ECX command, ESI disk (kept): SECTOR_IN is read into, SECTOR_OUT written from.
disk_start:
        cmpl    $0, PORT(%esi)
        je      ide_start
        jmp     virtio_start

# ESI disk (kept) -> AL: 0 under way, 1 done, 2 failed
disk_result:
        cmpl    $0, PORT(%esi)
        je      ide_result
        jmp     virtio_result

disk_now:                               # the same, waiting for the end; carry: failed
        call    disk_start
1:      call    disk_result
        cmpb    $1, %al
        jb      1b
        je      2f
        stc
        ret
2:      clc
        ret

# In each tick: as far as there is time before the next one, but no more than RECORDS records on each disk. The next
# request is always under way when this returns, so that a guest stopped at any moment has one in its devices.
run_disks:
        movl    disks, %eax
        testl   %eax, %eax
        jz      3f
        imull   $RECORDS, %eax
        movl    %eax, records_left
1:      call    next_step
        cmpb    $1, %al
        ja      3f
        je      2f
        pause
2:      movl    disk, %esi
        cmpl    $0, PORT(%esi)          # a look at IDE's registers costs an exit to QEMU: one in a tick
        je      3f
        cmpl    $0, TICKED(%ebx)
        jne     3f
        testb   %al, %al
        jz      1b
        cmpl    $0, records_left
        jg      1b
3:      ret

# -> AL: 0 waits for the disk, 1 a step further, 2 failed: the same step once more
next_step:
        movl    disk, %esi
        cmpl    $0, disk_waiting
        je      5f
        call    disk_result
        cmpb    $1, %al
        jb      9f
        movl    $0, disk_waiting
        ja      print_disk_error
        cmpl    $READ_SLOT, disk_step
        jb      1f
        je      2f
.if BULK_KIB
        cmpl    $WRITE_BULK, disk_step
        je      3f
.endif
        cmpl    $WRITE_SLOT, disk_step
        jne     4f
        incl    WRITTEN(%esi)
.if BULK_KIB
        movl    $WRITE_BULK, disk_step
        jmp     5f
3:
.endif
        cmpl    $0, CAN_FLUSH(%esi)
        je      4f
        movl    record, %eax
        notl    %eax
        testl   $(FLUSH_EVERY - 1), %eax
        jnz     4f
        movl    $FLUSH_DISK, disk_step
        jmp     5f

1:      movl    record, %edx            # slot k-1 was read
        decl    %edx
        call    check_record
        movl    $READ_SLOT, disk_step
        jmp     5f

2:      movl    record, %edx            # slot k was read
        subl    $SLOTS, %edx
        call    check_record
        call    make_record
        movl    $WRITE_SLOT, disk_step
        jmp     5f

4:      decl    records_left            # record k is there
        movl    $READ_LAST, disk_step
        addl    $0x1000, %esi
        movl    disks, %eax
        decl    %eax
        cmpl    %eax, NUMBER - 0x1000(%esi)
        jb      1f
        movl    $DISK_BLOCKS, %esi
        incl    record
1:      movl    %esi, disk
        cmpl    $0, record
        jne     5f
        movl    $READ_SLOT, disk_step

5:      movl    record, %eax
        movl    $READ, %ecx
        cmpl    $READ_SLOT, disk_step
        je      6f
        jb      1f
        movl    $WRITE, %ecx
        cmpl    $WRITE_SLOT, disk_step
        je      6f
.if BULK_KIB
        imull   $(BULK_KIB * 2), %eax
        andl    $(BULK_MIB * 2048 - 1), %eax
        addl    $(2048 - FIRST_SLOT), %eax
        cmpl    $WRITE_BULK, disk_step
        je      7f
.endif
        movl    $FLUSH, %ecx
        movl    $-FIRST_SLOT, %eax      # a flush is of sector 0
        jmp     7f
1:      decl    %eax
6:      andl    $(SLOTS - 1), %eax
7:      addl    $FIRST_SLOT, %eax
        call    disk_start
        movl    $1, disk_waiting
        movb    $1, %al
9:      ret

make_record:                            # ESI disk (kept)
        leal    SECTOR_OUT(%esi), %edi
        movl    $RECORD_MAGIC, %eax
        stosl
        movl    GENERATION(%esi), %eax
        stosl
        movl    record, %eax
        stosl
        movl    %eax, %ecx
        andl    $(SLOTS - 1), %ecx
        movl    TICK(%ebx), %eax
        movl    %eax, SLOT_TICKS(%esi, %ecx, 4)
        stosl
        movl    record, %eax
        movl    $124, %ecx
        rep stosl
        ret

# EDX: the record that SECTOR_IN must hold; below 0: none of this generation. ESI disk (kept).
check_record:
        movl    $-1, %eax               # found: -1 stands for none of this generation
        cmpl    $RECORD_MAGIC, SECTOR_IN(%esi)
        jne     1f
        movl    GENERATION(%esi), %ecx
        cmpl    SECTOR_IN + 4(%esi), %ecx
        jne     1f
        movl    SECTOR_IN + 8(%esi), %eax
        leal    SECTOR_IN + 16(%esi), %edi
        movl    $124, %ecx
        repe scasl
        je      1f
        movl    $-2, %eax               # not whole
1:      movl    %edx, %edi
        andl    $(SLOTS - 1), %edi
        movl    NUMBER(%esi), %ecx
        shll    $10, %ecx
        addl    %edi, %ecx
        testl   %edx, %edx
        jns     2f
        movl    $-1, %edx
2:      cmpl    %edx, %eax
        jne     3f
        testl   %edx, %edx
        js      4f
        movl    SECTOR_IN + 12(%esi), %eax
        movl    SLOT_TICKS(%esi, %edi, 4), %edx
        cmpl    %edx, %eax
        je      4f
        mismatch kind_disk_tick
        jmp     4f
3:      mismatch kind_disk
4:      movl    disk, %esi
        ret

print_disk_error:
        movl    NUMBER(%esi), %eax
        shll    $10, %eax
        movl    record, %ecx
        andl    $(SLOTS - 1), %ecx
        addl    %ecx, %eax
        movl    $text_disk_error, %esi
        leal    LINE(%ebx), %edi
        pushl   %eax
        call    put_text
        popl    %eax
        call    put_number
        call    end_line
        movb    $2, %al
        ret

# --- virtio disks --------------------------------------------------------------------------------------------------
# Their registers, from the I/O BAR on: 0 features offered, 4 taken, 8 page of the ring, 12 its size, 14 which ring,
# 16 doorbell, 18 status, 20 number of sectors (64 bits).
# The ring: SIZE descriptors of 16 bytes; what the guest made available (flags, count, SIZE entries of 2 bytes); from the
# next page on what the device used (flags, count, SIZE entries of 8 bytes). All requests use descriptors 0 to 2, so
# every available entry is 0, as the ring was cleared.

start_virtio:                           # ECX: its address on the bus (kept). A disk without the mark is left alone.
        cmpl    $MAX_DISKS, disks
        jae     9f
        pushl   %ecx
        movl    $4, %esi
        call    pci_address
        inl     %dx, %eax
        orl     $0x405, %eax            # ports on, may write to memory, no interrupts
        outl    %eax, %dx
        movl    $0x10, %esi
        call    pci_address
        inl     %dx, %eax
        testb   $1, %al
        jz      8f
        andl    $~3, %eax
        pushl   %eax
        call    new_disk
        popl    %edx
        movl    %edx, PORT(%esi)
        addl    $18, %edx
        xorl    %eax, %eax              # reset
        outb    %al, %dx
        incl    %eax                    # seen
        outb    %al, %dx
        movb    $3, %al                 # and there is a driver
        outb    %al, %dx
        subl    $18, %edx
        inl     %dx, %eax
        andl    $0x200, %eax            # flush; without it QEMU would flush by itself after each write
        movl    %eax, CAN_FLUSH(%esi)
        addl    $4, %edx
        outl    %eax, %dx
        addl    $10, %edx
        xorl    %eax, %eax
        outw    %ax, %dx
        subl    $2, %edx
        inw     %dx, %ax
        testl   %eax, %eax
        jz      7f
        cmpl    $MAX_QUEUE, %eax
        ja      7f
        movl    %eax, QUEUE_SIZE(%esi)
        movl    RING(%esi), %edi
        movl    %eax, %ecx
        shll    $4, %ecx
        movw    $1, (%edi, %ecx)        # no interrupts
        imull   $18, %eax
        leal    6 + 4095(%edi, %eax), %eax
        andl    $~4095, %eax
        movl    %eax, USED(%esi)
        subl    $4, %edx
        movl    %edi, %eax
        shrl    $12, %eax
        outl    %eax, %dx
        addl    $10, %edx
        movb    $7, %al                 # go
        outb    %al, %dx
        addl    $6, %edx
        inl     %dx, %eax
        testl   %eax, %eax
        jnz     1f
        subl    $4, %edx
        inl     %dx, %eax
        cmpl    $(FIRST_SLOT + SLOTS), %eax
        jb      7f
1:      movl    $(FIRST_SLOT - 2), %eax
        movl    $READ, %ecx
        call    disk_now
        jc      7f
        cmpl    $MARK, SECTOR_IN(%esi)
        jne     7f
        call    open_disk
        jnc     8f
7:      movl    PORT(%esi), %edx
        addl    $18, %edx
        xorl    %eax, %eax
        outb    %al, %dx
8:      popl    %ecx
9:      ret

virtio_start:
        movl    TICK(%ebx), %edx
        movl    %edx, STARTED(%esi)
        movl    %ecx, HEADER(%esi)
        movl    %eax, HEADER + 8(%esi)
        movb    $0xff, STATUS(%esi)
        movl    RING(%esi), %edi
        leal    HEADER(%esi), %eax
        movl    %eax, (%edi)
        movl    $16, 8(%edi)
        movl    $0x00010001, 12(%edi)   # descriptor 1 follows
        leal    SECTOR_IN(%esi), %eax
        movl    $0x00020003, %edx       # written by the device, descriptor 2 follows
        testl   %ecx, %ecx
        jz      1f
        leal    SECTOR_OUT(%esi), %eax
        movl    $0x00020001, %edx
1:      movl    %eax, 16(%edi)
        movl    $512, 24(%edi)
        movl    %edx, 28(%edi)
.if BULK_KIB
        cmpl    $WRITE_BULK, disk_step
        jne     3f
        movl    $FILL, 16(%edi)
        movl    $(BULK_KIB * 1024), 24(%edi)
3:
.endif
        leal    STATUS(%esi), %eax
        movl    %eax, 32(%edi)
        movl    $1, 40(%edi)
        movl    $2, 44(%edi)            # written by the device, the last
        cmpl    $FLUSH, %ecx
        jne     2f
        movl    $0x00020001, 12(%edi)   # a flush has no data
2:      movl    QUEUE_SIZE(%esi), %ecx
        shll    $4, %ecx
        addl    %ecx, %edi
        movzwl  2(%edi), %eax
        movzwl  REQUESTS(%esi), %edx
        movl    NUMBER(%esi), %ecx
        expect  kind_queue
        movl    disk, %esi
        incl    REQUESTS(%esi)
        movl    REQUESTS(%esi), %eax
        movw    %ax, 2(%edi)
        movl    PORT(%esi), %edx
        addl    $16, %edx
        xorl    %eax, %eax
        outw    %ax, %dx
        ret

virtio_result:
        movl    USED(%esi), %edi
        movzwl  2(%edi), %eax
        movzwl  REQUESTS(%esi), %edx
        cmpl    %edx, %eax
        je      3f
        leal    1(%eax), %ecx
        cmpw    %dx, %cx
        jne     1f
        movl    TICK(%ebx), %ecx
        subl    STARTED(%esi), %ecx
        cmpl    $(PATIENCE * HZ), %ecx
        jb      2f
        movl    TICK(%ebx), %ecx
        movl    %ecx, STARTED(%esi)
1:      movl    NUMBER(%esi), %ecx      # a count that cannot be, or a request that was lost
        mismatch kind_queue
        movl    disk, %esi
2:      xorb    %al, %al
        ret
3:      leal    -1(%edx), %ecx
        movl    QUEUE_SIZE(%esi), %eax
        decl    %eax
        andl    %eax, %ecx
        movl    4(%edi, %ecx, 8), %eax  # the descriptor that was used
        xorl    %edx, %edx
        movl    NUMBER(%esi), %ecx
        expect  kind_queue
        movl    disk, %esi
        movb    $1, %al
        cmpb    $0, STATUS(%esi)
        je      4f
        incb    %al
4:      ret

# --- IDE disk ------------------------------------------------------------------------------------------------------
.set IDE, 0x1f0

start_ide:
        xorl    %ecx, %ecx              # find the IDE controller: class 01, subclass 01
1:      movl    $8, %esi
        call    pci_address
        inl     %dx, %eax
        shrl    $16, %eax
        cmpl    $0x0101, %eax
        je      2f
        incl    %ecx
        cmpl    $256, %ecx
        jb      1b
        ret
2:      movl    $4, %esi
        call    pci_address
        inl     %dx, %eax
        orl     $5, %eax                # ports on, may write to memory
        outl    %eax, %dx
        movl    $0x20, %esi
        call    pci_address
        inl     %dx, %eax
        andl    $~3, %eax
        jz      3f
        movl    %eax, bus_master
        movw    $(IDE + 6), %dx
        movb    $0xe0, %al
        outb    %al, %dx
        incl    %edx
        inb     %dx, %al
        testb   $0x40, %al              # ready: a disk is there
        jz      3f
        cmpb    $0xff, %al
        je      3f
        call    new_disk
        jmp     open_disk
3:      ret

ide_start:
        pushl   %eax
        leal    SECTOR_IN(%esi), %eax
        testl   %ecx, %ecx
        jz      1f
        leal    SECTOR_OUT(%esi), %eax
1:      movl    %eax, PRD(%esi)
        movl    $0x80000200, PRD + 4(%esi)      # 512 bytes, the last entry
        movl    bus_master, %edx
        addl    $4, %edx
        leal    PRD(%esi), %eax
        outl    %eax, %dx
        subl    $2, %edx
        movb    $6, %al                 # forget the last command's error and interrupt
        outb    %al, %dx
        movw    $(IDE + 6), %dx
        movl    (%esp), %eax
        shrl    $24, %eax
        orb     $0xe0, %al
        outb    %al, %dx
        movw    $(IDE + 2), %dx
        movb    $1, %al
        outb    %al, %dx
        popl    %eax
        movl    %ecx, %edi
        movl    $3, %ecx
2:      incl    %edx
        outb    %al, %dx
        shrl    $8, %eax
        loop    2b
        movw    $(IDE + 7), %dx
        movb    $0xc8, %al              # READ DMA
        movb    $0x09, %cl              # to memory, go
        testl   %edi, %edi
        jz      3f
        movb    $0xca, %al              # WRITE DMA
        movb    $0x01, %cl
3:      outb    %al, %dx
        movl    bus_master, %edx
        movb    %cl, %al
        outb    %al, %dx
        ret

ide_result:
        movl    bus_master, %edx
        addl    $2, %edx
        inb     %dx, %al
        movb    %al, %cl
        testb   $1, %al
        jz      1f
        testb   $2, %al
        jz      2f
1:      movw    $(IDE + 7), %dx
        inb     %dx, %al
        testb   $0x80, %al
        jnz     2f
        movb    %al, %ch
        movl    bus_master, %edx
        xorb    %al, %al
        outb    %al, %dx                # stop
        movb    $2, %al
        testb   $0x21, %ch
        jnz     3f
        testb   $2, %cl
        jnz     3f
        decb    %al
        ret
2:      xorb    %al, %al
3:      ret

# --- what others want from us --------------------------------------------------------------------------------------
commands:
        movw    $(COM1 + 5), %dx
        inb     %dx, %al
        testb   $1, %al
        jz      1f
        movw    $COM1, %dx
        inb     %dx, %al
        cmpb    $'q', %al
        je      power_off
        cmpb    $'r', %al
        je      reset
        cmpb    $'c', %al
        je      spoil
1:      testl   $7, TICK(%ebx)          # the rest less often: a look costs an exit to QEMU
        jnz     2f
        inb     $0x64, %al
        andb    $0x21, %al
        cmpb    $1, %al                 # a byte, and not the mouse's
        jne     3f
        inb     $0x60, %al
        cmpb    $0x10, %al
        je      power_off
        cmpb    $0x13, %al
        je      reset
        cmpb    $0x2e, %al
        je      spoil
3:      movw    $PM, %dx
        inw     %dx, %ax
        testw   $0x100, %ax             # power button
        jnz     power_off
2:      ret

start_power_button:
        movw    $(PM + 2), %dx
        movw    $0x100, %ax             # QEMU notes a press only when the event is enabled
        outw    %ax, %dx
        ret

spoil:  call    page_words
        xorl    $0x5a5a, (PAGES / 2) * 4096(%edi)
        ret

power_off:
        movl    $text_bye, %esi
        call    print_text
        movw    $(PM + 4), %dx
        movw    $0x2000, %ax            # S5
        outw    %ax, %dx
1:      cli
        hlt
        jmp     1b

reset:  movl    $text_reboot, %esi
        call    print_text
        movw    $0xcf9, %dx
        movb    $6, %al
        outb    %al, %dx
        movb    $0xfe, %al
        outb    %al, $0x64
        jmp     1b

# --- data ----------------------------------------------------------------------------------------------------------
text_boot:       .asciz "BOOT"
text_cpus:       .asciz "CPUS "
text_disks:      .asciz "DISKS "
text_corrupt:    .asciz "CORRUPT "
text_disk_error: .asciz "DISKERROR "
text_bye:        .asciz "BYE"
text_reboot:     .asciz "REBOOT"
kind_page:       .asciz "page"
kind_fill:       .asciz "fill"
kind_register:   .asciz "register"
kind_vector:     .asciz "vector"
kind_checksum:   .asciz "checksum"
kind_clock:      .asciz "clock"
kind_total:      .asciz "total"
kind_disk:       .asciz "disk"
kind_disk_tick:  .asciz "disktick"
kind_queue:      .asciz "queue"
kind_fault:      .asciz "fault"

.balign 64                              # read in again at each boot, so with their first values
total_lock:     .long 0
total:          .long 0
.balign 64
serial_lock:    .long 0
cpus:           .long 1                 # how many a line tells of
cpus_taken:     .long 1
cpus_up:        .long 1
cpus_may_start: .long 0
bus_master:     .long 0
disks:          .long 0
disk:           .long 0                 # whose turn it is: its block
disk_step:      .long 0
disk_waiting:   .long 0                 # a request is under way
record:         .long 0
records_left:   .long 0                 # that may be written in this tick
.balign 512
program_end:
