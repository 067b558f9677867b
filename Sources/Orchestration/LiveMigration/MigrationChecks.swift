import ControlProtocol
import Libvirt

/// What would make a live migration fail for certain, judged before anything is touched. Devices that cannot be moved are libvirt's to name.
enum MigrationChecks {
    /// What the peer says about itself. Returns what an administrator should know.
    static func judge(_ facts: HostFacts, _ definition: DomainDefinition, peer: String) throws -> [String] {
        for finding in Doctor.judge(facts, definition, peer: peer) where finding.verdict == .failed { throw ControlFailure(finding.detail, advice: finding.advice) }
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
