import ControlProtocol
import Foundation
import FoundationXML
import Libvirt

/// What cannot have a shadow, and why. Libvirt's own list of what blocks a migration is `qemuMigrationSrcIsAllowed` (qemu_migration.c), QEMU's
/// are its migration blockers and unmigratable devices, which `query-migrate` names; what follows says it before, and with the way out.
extension DomainDefinition {
    private struct Rule {
        var check: String
        var paths: [String]
        var what: String
        var advice: String
        var verdict = Finding.Verdict.failed
    }

    private static let rules = [
        Rule(check: "host-devices", paths: ["devices/hostdev", "devices/interface[@type='hostdev']", "devices/interface[source/@type='hostdev']"],
             what: "The domain uses devices of its host (PCI, USB, SCSI or mediated passthrough)",
             advice: "Their state cannot be captured: detach them, or use virtio devices"),
        Rule(check: "vhost-user", paths: ["devices/interface[@type='vhostuser']", "devices/disk[@type='vhostuser']", "devices/interface[@type='vdpa']", "devices/disk[@type='vhostvdpa']"],
             what: "The domain uses vhost-user or vDPA devices", advice: "Their state lives outside QEMU: use virtio with the kernel's vhost or without"),
        Rule(check: "nvme", paths: ["devices/disk[@type='nvme']"], what: "The domain uses an NVMe controller of its host",
             advice: "Its state cannot be captured: use a disk on a file, a volume or a block device"),
        Rule(check: "direct-interfaces", paths: ["devices/interface[@type='direct'][source/@mode='passthrough']"],
             what: "The domain has a whole network device of its host (macvtap in passthrough mode)", advice: "Use mode='bridge', or a bridge"),
        Rule(check: "shared-folders", paths: ["devices/filesystem"], what: "The domain shares folders of its host",
             advice: "QEMU cannot migrate them: remove the <filesystem> elements"),
        Rule(check: "shared-memory-devices", paths: ["devices/shmem"], what: "The domain has <shmem> devices", advice: "Their memory is not part of the stream: remove them"),
        Rule(check: "memory-devices", paths: ["devices/memory[@model!='dimm']"], what: "The domain has memory devices other than DIMMs (NVDIMM, virtio-mem, virtio-pmem, SGX)",
             advice: "Their memory lies in files of this host, or is not always there: use DIMMs or more <memory>"),
        Rule(check: "tpm", paths: ["devices/tpm[not(backend/@type='emulator')]"], what: "The domain has a TPM of its host or of another program",
             advice: "Its state is kept outside QEMU: use an emulated TPM, or none"),
        Rule(check: "launch-security", paths: ["launchSecurity"], what: "The guest's memory is encrypted", advice: "It cannot be read from outside by design"),
        Rule(check: "crypto-devices", paths: ["devices/crypto"], what: "The domain has a <crypto> device", advice: "QEMU cannot migrate it: remove it"),
        Rule(check: "host-input", paths: ["devices/input[@type='passthrough']", "devices/input[@type='evdev']"], what: "The domain has input devices of its host",
             advice: "Use <input type='tablet'> or a keyboard and mouse of QEMU's"),
        Rule(check: "smartcard", paths: ["devices/smartcard[@mode!='passthrough']"], what: "The domain uses a smart card of its host", advice: "Detach it"),
        Rule(check: "3d", paths: ["devices/video/model/acceleration[@accel3d='yes']"], what: "The domain's video device draws with the host's GPU",
             advice: "QEMU cannot migrate it: accel3d='no'"),
        Rule(check: "user-network", paths: ["devices/interface[@type='user']"], what: "The domain has a user-mode network, whose connections end when it goes over",
             advice: "Use a bridge or a libvirt network when connections are to stay", verdict: .warning),
        Rule(check: "invariant-tsc", paths: ["cpu[feature[@name='invtsc'][@policy='require' or @policy='force']][not(../clock/timer[@name='tsc'][@frequency])]"],
             what: "The guest is promised an invariant TSC without a frequency", advice: "Add <timer name='tsc' frequency='…'/> to <clock>, or drop the invtsc feature"),
    ]

    /// What cannot be replicated, one finding each.
    var obstacles: [Finding] {
        var found = Self.rules.compactMap { rule -> Finding? in
            let count = rule.paths.reduce(0) { $0 + elements($1).count }
            return count > 0 ? Finding(rule.check, rule.verdict, "\(rule.what) (\(count))", advice: rule.advice) : nil
        }
        if let kept = firmware?.otherNVRAM {
            found.append(Finding("firmware", .failed, "The firmware's variables are kept \(kept)", advice: "Only raw files go over: convert it, or use BIOS"))
        }
        return found
    }

    /// What is lost when the guest goes over, or would come up again at the wrong time; libvirt refuses to migrate such a domain, too.
    static func attachments(of domain: Domain) throws -> [Finding] {
        var found: [Finding] = []
        let snapshots = try domain.snapshotCount()
        if snapshots > 0 {
            found.append(Finding("snapshots", .failed, "The domain has \(snapshots) snapshots, which stay behind when it goes over and would then be of a disk that it no longer uses",
                                 advice: "Delete them with `virsh snapshot-delete \(domain.name) NAME`, or only what libvirt knows of them with --metadata"))
        }
        let checkpoints = (try? domain.checkpointCount()) ?? 0
        if checkpoints > 0 {
            found.append(Finding("checkpoints", .warning, "The domain has \(checkpoints) checkpoints for incremental backups, which stay behind when it goes over",
                                 advice: "Make a full backup after a swap or a failover"))
        }
        if try domain.hasManagedSave() {
            found.append(Finding("managed-save", .failed, "Libvirt keeps a saved state of the domain from an earlier time, which its next start would restore",
                                 advice: "`virsh managedsave-remove \(domain.name)`"))
        }
        return found
    }
}
