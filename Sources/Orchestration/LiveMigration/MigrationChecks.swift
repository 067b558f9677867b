import ControlProtocol
import Libvirt

/// What would make a live migration fail for certain, judged before anything is touched. Devices that cannot be moved are libvirt's to name.
enum MigrationChecks {
    /// What the peer says about itself. Returns what an administrator should know.
    static func judge(_ facts: HostFacts, _ definition: DomainDefinition, peer: String) throws -> [String] {
        if definition.type == "kvm", !facts.hasKVM { throw ControlFailure("\(peer) has no /dev/kvm", advice: "Enable virtualisation in its firmware and load kvm_intel or kvm_amd") }
        if !facts.machines.isEmpty, !facts.machines.contains(definition.machine) {
            throw ControlFailure("\(peer) lacks the machine type \(definition.machine)", advice: "Install the same or a newer QEMU there, or give the domain an older machine type")
        }
        if facts.cpuVerdict == "incompatible" {
            throw ControlFailure("The CPU of \(peer) cannot run this guest's CPU model", advice: "Give the domain a CPU model that both hosts have")
        }
        if facts.freeMemoryBytes < definition.memoryBytes {
            throw ControlFailure("\(peer) has \(facts.freeMemoryBytes >> 20) MiB free, the guest has \(definition.memoryBytes >> 20) MiB", advice: "Free memory there")
        }
        for finding in facts.disks ?? [] where finding.verdict == .failed { throw ControlFailure(finding.detail, advice: finding.advice) }
        return (facts.disks ?? []).filter { $0.verdict == .warning }.map(\.detail)
    }

    /// A job that somebody else runs on the guest.
    static func checkIdle(_ domain: Domain) throws {
        let job = try domain.jobInfo()
        guard job.type == .bounded || job.type == .unbounded else { return }
        throw ControlFailure("Domain \(domain.name) has a job already (\((job.operation ?? .unknown).description))",
                             advice: "Wait for it (`virsh domjobinfo \(domain.name)`) or end it with `virsh domjobabort \(domain.name)`")
    }
}
