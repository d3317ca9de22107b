-- SPDX-License-Identifier: MIT
--
-- Captures of vscsi in Wireshark and tshark: records of link type USER0 (147), and in them SRP,
-- vscsiif and blkif.
--
--   tshark -X lua_script:vscsi.lua -r file.pcapng
--   or copy it to Wireshark's folder for plug-ins (Help, About Wireshark, Folders)
--
-- CDBs, statuses, sense data and what was captured of the data go to Wireshark's own SCSI dissector.
-- A script cannot call that one, but it can call iSCSI's: so each is made an iSCSI PDU that never
-- was on a wire. Every scsi* field, filter and statistic (-z scsi,srt,0) then works, on fields of
-- our own there are vscsi.FORMAT.FIELD, vscsi.tag, vscsi.request_in, vscsi.answer_in, vscsi.time.

-- The declarations of vscsi.wire: written by `python -m vscsi.capture.wireshark`.
local FORMATS = {
  record = {
    { "version", 0, 1, "number", false },
    { "protocol", 1, 1, "number", false },
    { "direction", 2, 1, "number", false },
    { "layout", 3, 1, "number", false },
    { "domain", 4, 2, "number", true },
    { "device", 6, 2, "number", true },
    { "queue", 8, 2, "number", true },
    { "in_flight", 10, 2, "number", true },
    { "ring_index", 12, 4, "number", true },
    { "message_length", 16, 2, "number", true },
    { "segments_length", 18, 2, "number", true },
    { "data_length", 20, 4, "number", true },
    { "payload_kind", 24, 1, "number", false },
    { "reserved", 25, 3, "bytes", false },
  },
  srp_slot = {
    { "format", 0, 1, "number", false },
    { "reserved", 1, 1, "bytes", false },
    { "length", 2, 2, "number", true },
  },
  srp_login_req = {
    { "type", 0, 1, "number", false },
    { "reserved1", 1, 7, "bytes", false },
    { "tag", 8, 8, "number", false },
    { "requested_max_it_iu_length", 16, 4, "number", false },
    { "reserved2", 20, 4, "bytes", false },
    { "required_buffer_formats", 24, 2, "number", false },
    { "flags", 26, 1, "number", false },
    { "reserved3", 27, 1, "bytes", false },
    { "immediate_data_offset", 28, 2, "number", false },
    { "reserved4", 30, 2, "bytes", false },
    { "initiator_port_id", 32, 16, "bytes", false },
    { "target_port_id", 48, 16, "bytes", false },
  },
  srp_login_rsp = {
    { "type", 0, 1, "number", false },
    { "reserved1", 1, 3, "bytes", false },
    { "request_limit_delta", 4, 4, "signed", false },
    { "tag", 8, 8, "number", false },
    { "max_it_iu_length", 16, 4, "number", false },
    { "max_ti_iu_length", 20, 4, "number", false },
    { "supported_buffer_formats", 24, 2, "number", false },
    { "flags", 26, 1, "number", false },
    { "reserved2", 27, 25, "bytes", false },
  },
  srp_login_rej = {
    { "type", 0, 1, "number", false },
    { "reserved1", 1, 3, "bytes", false },
    { "reason", 4, 4, "number", false },
    { "tag", 8, 8, "number", false },
    { "reserved2", 16, 8, "bytes", false },
    { "supported_buffer_formats", 24, 2, "number", false },
    { "reserved3", 26, 6, "bytes", false },
  },
  srp_i_logout = {
    { "type", 0, 1, "number", false },
    { "reserved1", 1, 7, "bytes", false },
    { "tag", 8, 8, "number", false },
  },
  srp_t_logout = {
    { "type", 0, 1, "number", false },
    { "sol_not", 1, 1, "number", false },
    { "reserved1", 2, 2, "bytes", false },
    { "reason", 4, 4, "number", false },
    { "tag", 8, 8, "number", false },
  },
  srp_cmd = {
    { "type", 0, 1, "number", false },
    { "sol_not", 1, 1, "number", false },
    { "reserved1", 2, 3, "bytes", false },
    { "data_formats", 5, 1, "number", false },
    { "data_out_count", 6, 1, "number", false },
    { "data_in_count", 7, 1, "number", false },
    { "tag", 8, 8, "number", false },
    { "reserved2", 16, 4, "bytes", false },
    { "lun", 20, 8, "bytes", false },
    { "reserved3", 28, 1, "bytes", false },
    { "attribute", 29, 1, "number", false },
    { "reserved4", 30, 1, "bytes", false },
    { "additional_cdb_length", 31, 1, "number", false },
    { "cdb", 32, 16, "bytes", false },
  },
  srp_rsp = {
    { "type", 0, 1, "number", false },
    { "sol_not", 1, 1, "number", false },
    { "reserved1", 2, 2, "bytes", false },
    { "request_limit_delta", 4, 4, "signed", false },
    { "tag", 8, 8, "number", false },
    { "reserved2", 16, 2, "bytes", false },
    { "flags", 18, 1, "number", false },
    { "status", 19, 1, "number", false },
    { "data_out_residual", 20, 4, "number", false },
    { "data_in_residual", 24, 4, "number", false },
    { "sense_data_length", 28, 4, "number", false },
    { "response_data_length", 32, 4, "number", false },
  },
  srp_tsk_mgmt = {
    { "type", 0, 1, "number", false },
    { "sol_not", 1, 1, "number", false },
    { "reserved1", 2, 6, "bytes", false },
    { "tag", 8, 8, "number", false },
    { "reserved2", 16, 4, "bytes", false },
    { "lun", 20, 8, "bytes", false },
    { "reserved3", 28, 2, "bytes", false },
    { "function", 30, 1, "number", false },
    { "reserved4", 31, 1, "bytes", false },
    { "managed_tag", 32, 8, "number", false },
    { "reserved5", 40, 8, "bytes", false },
  },
  srp_cred_req = {
    { "type", 0, 1, "number", false },
    { "sol_not", 1, 1, "number", false },
    { "reserved1", 2, 2, "bytes", false },
    { "request_limit_delta", 4, 4, "signed", false },
    { "tag", 8, 8, "number", false },
  },
  srp_cred_rsp = {
    { "type", 0, 1, "number", false },
    { "reserved1", 1, 7, "bytes", false },
    { "tag", 8, 8, "number", false },
  },
  srp_aer_req = {
    { "type", 0, 1, "number", false },
    { "sol_not", 1, 1, "number", false },
    { "reserved1", 2, 2, "bytes", false },
    { "request_limit_delta", 4, 4, "signed", false },
    { "tag", 8, 8, "number", false },
    { "reserved2", 16, 4, "bytes", false },
    { "lun", 20, 8, "bytes", false },
    { "sense_data_length", 28, 4, "number", false },
    { "reserved3", 32, 4, "bytes", false },
  },
  srp_aer_rsp = {
    { "type", 0, 1, "number", false },
    { "reserved1", 1, 7, "bytes", false },
    { "tag", 8, 8, "number", false },
  },
  srp_descriptor = {
    { "address", 0, 8, "number", false },
    { "handle", 8, 4, "number", false },
    { "length", 12, 4, "number", false },
  },
  mad = {
    { "type", 0, 4, "number", false },
    { "status", 4, 2, "number", false },
    { "length", 6, 2, "number", false },
    { "tag", 8, 8, "number", false },
  },
  mad_buffer = {
    { "type", 0, 4, "number", false },
    { "status", 4, 2, "number", false },
    { "length", 6, 2, "number", false },
    { "tag", 8, 8, "number", false },
    { "buffer", 16, 8, "number", false },
  },
  mad_empty_iu = {
    { "type", 0, 4, "number", false },
    { "status", 4, 2, "number", false },
    { "length", 6, 2, "number", false },
    { "tag", 8, 8, "number", false },
    { "buffer", 16, 8, "number", false },
    { "port", 24, 4, "number", false },
  },
  mad_region = {
    { "type", 0, 4, "number", false },
    { "status", 4, 2, "number", false },
    { "length", 6, 2, "number", false },
    { "tag", 8, 8, "number", false },
    { "handle", 16, 4, "number", false },
    { "flags", 20, 2, "number", false },
    { "directory_count", 22, 2, "number", false },
    { "pages", 24, 4, "number", false },
  },
  vscsiif_request = {
    { "rqid", 0, 2, "number", true },
    { "act", 2, 1, "number", false },
    { "cmd_len", 3, 1, "number", false },
    { "cdb", 4, 16, "bytes", false },
    { "timeout_s", 20, 2, "number", true },
    { "channel", 22, 2, "number", true },
    { "id", 24, 2, "number", true },
    { "lun", 26, 2, "number", true },
    { "ref_rqid", 28, 2, "number", true },
    { "direction", 30, 1, "number", false },
    { "nr_segments", 31, 1, "number", false },
  },
  vscsiif_preset = {
    { "rqid", 0, 2, "number", true },
    { "act", 2, 1, "number", false },
    { "nr_segments", 3, 1, "number", false },
  },
  vscsiif_response = {
    { "rqid", 0, 2, "number", true },
    { "act", 2, 1, "number", false },
    { "sense_len", 3, 1, "number", false },
    { "sense_buffer", 4, 96, "bytes", false },
    { "rslt", 100, 4, "signed", true },
    { "residual", 104, 4, "number", true },
    { "reserved", 108, 144, "bytes", false },
  },
  vscsiif_segment = {
    { "gref", 0, 4, "number", true },
    { "offset", 4, 2, "number", true },
    { "length", 6, 2, "number", true },
  },
  blkif64_rw = {
    { "operation", 0, 1, "number", false },
    { "nr_segments", 1, 1, "number", false },
    { "handle", 2, 2, "number", true },
    { "padding", 4, 4, "bytes", false },
    { "id", 8, 8, "number", true },
    { "sector_number", 16, 8, "number", true },
  },
  blkif64_discard = {
    { "operation", 0, 1, "number", false },
    { "flag", 1, 1, "number", false },
    { "handle", 2, 2, "number", true },
    { "padding", 4, 4, "bytes", false },
    { "id", 8, 8, "number", true },
    { "sector_number", 16, 8, "number", true },
    { "nr_sectors", 24, 8, "number", true },
  },
  blkif64_indirect = {
    { "operation", 0, 1, "number", false },
    { "indirect_op", 1, 1, "number", false },
    { "nr_segments", 2, 2, "number", true },
    { "padding", 4, 4, "bytes", false },
    { "id", 8, 8, "number", true },
    { "sector_number", 16, 8, "number", true },
    { "handle", 24, 2, "number", true },
    { "padding2", 26, 2, "bytes", false },
    { "indirect_grefs", 28, 32, "bytes", false },
  },
  blkif64_other = {
    { "operation", 0, 1, "number", false },
    { "padding1", 1, 3, "bytes", false },
    { "padding", 4, 4, "bytes", false },
    { "id", 8, 8, "number", true },
  },
  blkif64_response = {
    { "id", 0, 8, "number", true },
    { "operation", 8, 1, "number", false },
    { "padding1", 9, 1, "bytes", false },
    { "status", 10, 2, "signed", true },
    { "tail", 12, 4, "bytes", false },
  },
  blkif32_rw = {
    { "operation", 0, 1, "number", false },
    { "nr_segments", 1, 1, "number", false },
    { "handle", 2, 2, "number", true },
    { "id", 4, 8, "number", true },
    { "sector_number", 12, 8, "number", true },
  },
  blkif32_discard = {
    { "operation", 0, 1, "number", false },
    { "flag", 1, 1, "number", false },
    { "handle", 2, 2, "number", true },
    { "id", 4, 8, "number", true },
    { "sector_number", 12, 8, "number", true },
    { "nr_sectors", 20, 8, "number", true },
  },
  blkif32_indirect = {
    { "operation", 0, 1, "number", false },
    { "indirect_op", 1, 1, "number", false },
    { "nr_segments", 2, 2, "number", true },
    { "id", 4, 8, "number", true },
    { "sector_number", 12, 8, "number", true },
    { "handle", 20, 2, "number", true },
    { "padding2", 22, 2, "bytes", false },
    { "indirect_grefs", 24, 32, "bytes", false },
  },
  blkif32_other = {
    { "operation", 0, 1, "number", false },
    { "padding1", 1, 3, "bytes", false },
    { "id", 4, 8, "number", true },
  },
  blkif32_response = {
    { "id", 0, 8, "number", true },
    { "operation", 8, 1, "number", false },
    { "padding1", 9, 1, "bytes", false },
    { "status", 10, 2, "signed", true },
  },
  blkif_segment = {
    { "gref", 0, 4, "number", true },
    { "first_sect", 4, 1, "number", false },
    { "last_sect", 5, 1, "number", false },
    { "padding", 6, 2, "bytes", false },
  },
}
local CODES = {
  ["record.protocol"] = { [1] = "SRP", [2] = "VSCSIIF", [3] = "BLKIF" },
  ["record.direction"] = { [0] = "TO TARGET", [1] = "TO INITIATOR" },
  ["record.layout"] = { [0] = "NONE", [1] = "X86 64", [2] = "X86 32" },
  ["record.payload_kind"] = { [0] = "NONE", [1] = "HEAD", [2] = "XXH64" },
  ["srp_slot.format"] = { [1] = "SRP", [2] = "MAD" },
  ["srp_slot.type"] = { [0] = "LOGIN REQ", [1] = "TSK MGMT", [2] = "CMD", [3] = "I LOGOUT", [65] = "CRED RSP", [66] = "AER RSP", [128] = "T LOGOUT", [129] = "CRED REQ", [130] = "AER REQ", [192] = "LOGIN RSP", [193] = "RSP", [194] = "LOGIN REJ" },
  ["srp_login_req.type"] = { [0] = "LOGIN REQ", [1] = "TSK MGMT", [2] = "CMD", [3] = "I LOGOUT", [65] = "CRED RSP", [66] = "AER RSP", [128] = "T LOGOUT", [129] = "CRED REQ", [130] = "AER REQ", [192] = "LOGIN RSP", [193] = "RSP", [194] = "LOGIN REJ" },
  ["srp_login_rsp.type"] = { [0] = "LOGIN REQ", [1] = "TSK MGMT", [2] = "CMD", [3] = "I LOGOUT", [65] = "CRED RSP", [66] = "AER RSP", [128] = "T LOGOUT", [129] = "CRED REQ", [130] = "AER REQ", [192] = "LOGIN RSP", [193] = "RSP", [194] = "LOGIN REJ" },
  ["srp_login_rej.type"] = { [0] = "LOGIN REQ", [1] = "TSK MGMT", [2] = "CMD", [3] = "I LOGOUT", [65] = "CRED RSP", [66] = "AER RSP", [128] = "T LOGOUT", [129] = "CRED REQ", [130] = "AER REQ", [192] = "LOGIN RSP", [193] = "RSP", [194] = "LOGIN REJ" },
  ["srp_i_logout.type"] = { [0] = "LOGIN REQ", [1] = "TSK MGMT", [2] = "CMD", [3] = "I LOGOUT", [65] = "CRED RSP", [66] = "AER RSP", [128] = "T LOGOUT", [129] = "CRED REQ", [130] = "AER REQ", [192] = "LOGIN RSP", [193] = "RSP", [194] = "LOGIN REJ" },
  ["srp_t_logout.type"] = { [0] = "LOGIN REQ", [1] = "TSK MGMT", [2] = "CMD", [3] = "I LOGOUT", [65] = "CRED RSP", [66] = "AER RSP", [128] = "T LOGOUT", [129] = "CRED REQ", [130] = "AER REQ", [192] = "LOGIN RSP", [193] = "RSP", [194] = "LOGIN REJ" },
  ["srp_cmd.type"] = { [0] = "LOGIN REQ", [1] = "TSK MGMT", [2] = "CMD", [3] = "I LOGOUT", [65] = "CRED RSP", [66] = "AER RSP", [128] = "T LOGOUT", [129] = "CRED REQ", [130] = "AER REQ", [192] = "LOGIN RSP", [193] = "RSP", [194] = "LOGIN REJ" },
  ["srp_rsp.type"] = { [0] = "LOGIN REQ", [1] = "TSK MGMT", [2] = "CMD", [3] = "I LOGOUT", [65] = "CRED RSP", [66] = "AER RSP", [128] = "T LOGOUT", [129] = "CRED REQ", [130] = "AER REQ", [192] = "LOGIN RSP", [193] = "RSP", [194] = "LOGIN REJ" },
  ["srp_tsk_mgmt.type"] = { [0] = "LOGIN REQ", [1] = "TSK MGMT", [2] = "CMD", [3] = "I LOGOUT", [65] = "CRED RSP", [66] = "AER RSP", [128] = "T LOGOUT", [129] = "CRED REQ", [130] = "AER REQ", [192] = "LOGIN RSP", [193] = "RSP", [194] = "LOGIN REJ" },
  ["srp_cred_req.type"] = { [0] = "LOGIN REQ", [1] = "TSK MGMT", [2] = "CMD", [3] = "I LOGOUT", [65] = "CRED RSP", [66] = "AER RSP", [128] = "T LOGOUT", [129] = "CRED REQ", [130] = "AER REQ", [192] = "LOGIN RSP", [193] = "RSP", [194] = "LOGIN REJ" },
  ["srp_cred_rsp.type"] = { [0] = "LOGIN REQ", [1] = "TSK MGMT", [2] = "CMD", [3] = "I LOGOUT", [65] = "CRED RSP", [66] = "AER RSP", [128] = "T LOGOUT", [129] = "CRED REQ", [130] = "AER REQ", [192] = "LOGIN RSP", [193] = "RSP", [194] = "LOGIN REJ" },
  ["srp_aer_req.type"] = { [0] = "LOGIN REQ", [1] = "TSK MGMT", [2] = "CMD", [3] = "I LOGOUT", [65] = "CRED RSP", [66] = "AER RSP", [128] = "T LOGOUT", [129] = "CRED REQ", [130] = "AER REQ", [192] = "LOGIN RSP", [193] = "RSP", [194] = "LOGIN REJ" },
  ["srp_aer_rsp.type"] = { [0] = "LOGIN REQ", [1] = "TSK MGMT", [2] = "CMD", [3] = "I LOGOUT", [65] = "CRED RSP", [66] = "AER RSP", [128] = "T LOGOUT", [129] = "CRED REQ", [130] = "AER REQ", [192] = "LOGIN RSP", [193] = "RSP", [194] = "LOGIN REJ" },
  ["srp_descriptor.type"] = { [0] = "LOGIN REQ", [1] = "TSK MGMT", [2] = "CMD", [3] = "I LOGOUT", [65] = "CRED RSP", [66] = "AER RSP", [128] = "T LOGOUT", [129] = "CRED REQ", [130] = "AER REQ", [192] = "LOGIN RSP", [193] = "RSP", [194] = "LOGIN REJ" },
  ["srp_rsp.status"] = { [0] = "GOOD", [2] = "CHECK CONDITION", [4] = "CONDITION MET", [8] = "BUSY", [24] = "RESERVATION CONFLICT", [40] = "TASK SET FULL", [48] = "ACA ACTIVE", [64] = "TASK ABORTED" },
  ["srp_tsk_mgmt.function"] = { [1] = "ABORT TASK", [2] = "ABORT TASK SET", [4] = "CLEAR TASK SET", [8] = "LOGICAL UNIT RESET", [64] = "CLEAR ACA" },
  ["srp_login_rej.reason"] = { [65536] = "UNABLE TO ESTABLISH CHANNEL", [65537] = "INSUFFICIENT CHANNEL RESOURCES", [65538] = "REQUESTED IT IU LENGTH TOO LARGE", [65539] = "UNABLE TO ASSOCIATE CHANNEL", [65540] = "UNSUPPORTED BUFFER FORMAT", [65541] = "MULTI CHANNEL UNSUPPORTED", [65542] = "CHANNEL LIMIT REACHED" },
  ["srp_t_logout.reason"] = { [0] = "NO REASON", [1] = "INACTIVE CHANNEL", [2] = "INVALID IU TYPE", [3] = "SPURIOUS RESPONSE", [4] = "MULTI CHANNEL ACTION" },
  ["mad.type"] = { [1] = "EMPTY IU", [2] = "ERROR LOG", [3] = "ADAPTER INFO", [4] = "HOST CONFIG", [5] = "CAPABILITIES", [8] = "ENABLE FAST FAIL", [1448280065] = "REGISTER REGION", [1448280066] = "UNREGISTER REGION" },
  ["mad_buffer.type"] = { [1] = "EMPTY IU", [2] = "ERROR LOG", [3] = "ADAPTER INFO", [4] = "HOST CONFIG", [5] = "CAPABILITIES", [8] = "ENABLE FAST FAIL", [1448280065] = "REGISTER REGION", [1448280066] = "UNREGISTER REGION" },
  ["mad_empty_iu.type"] = { [1] = "EMPTY IU", [2] = "ERROR LOG", [3] = "ADAPTER INFO", [4] = "HOST CONFIG", [5] = "CAPABILITIES", [8] = "ENABLE FAST FAIL", [1448280065] = "REGISTER REGION", [1448280066] = "UNREGISTER REGION" },
  ["mad_region.type"] = { [1] = "EMPTY IU", [2] = "ERROR LOG", [3] = "ADAPTER INFO", [4] = "HOST CONFIG", [5] = "CAPABILITIES", [8] = "ENABLE FAST FAIL", [1448280065] = "REGISTER REGION", [1448280066] = "UNREGISTER REGION" },
  ["mad.status"] = { [0] = "SUCCESS", [241] = "NOT SUPPORTED", [247] = "FAILED" },
  ["mad_buffer.status"] = { [0] = "SUCCESS", [241] = "NOT SUPPORTED", [247] = "FAILED" },
  ["mad_empty_iu.status"] = { [0] = "SUCCESS", [241] = "NOT SUPPORTED", [247] = "FAILED" },
  ["mad_region.status"] = { [0] = "SUCCESS", [241] = "NOT SUPPORTED", [247] = "FAILED" },
  ["vscsiif_request.act"] = { [1] = "CDB", [2] = "ABORT", [3] = "RESET", [4] = "SG PRESET" },
  ["vscsiif_preset.act"] = { [1] = "CDB", [2] = "ABORT", [3] = "RESET", [4] = "SG PRESET" },
  ["vscsiif_request.direction"] = { [0] = "BIDIRECTIONAL", [1] = "TO DEVICE", [2] = "FROM DEVICE", [3] = "NONE" },
  ["blkif64_rw.operation"] = { [0] = "READ", [1] = "WRITE", [2] = "WRITE BARRIER", [3] = "FLUSH DISKCACHE", [4] = "RESERVED 1", [5] = "DISCARD", [6] = "INDIRECT" },
  ["blkif64_discard.operation"] = { [0] = "READ", [1] = "WRITE", [2] = "WRITE BARRIER", [3] = "FLUSH DISKCACHE", [4] = "RESERVED 1", [5] = "DISCARD", [6] = "INDIRECT" },
  ["blkif64_indirect.operation"] = { [0] = "READ", [1] = "WRITE", [2] = "WRITE BARRIER", [3] = "FLUSH DISKCACHE", [4] = "RESERVED 1", [5] = "DISCARD", [6] = "INDIRECT" },
  ["blkif64_other.operation"] = { [0] = "READ", [1] = "WRITE", [2] = "WRITE BARRIER", [3] = "FLUSH DISKCACHE", [4] = "RESERVED 1", [5] = "DISCARD", [6] = "INDIRECT" },
  ["blkif64_response.operation"] = { [0] = "READ", [1] = "WRITE", [2] = "WRITE BARRIER", [3] = "FLUSH DISKCACHE", [4] = "RESERVED 1", [5] = "DISCARD", [6] = "INDIRECT" },
  ["blkif32_rw.operation"] = { [0] = "READ", [1] = "WRITE", [2] = "WRITE BARRIER", [3] = "FLUSH DISKCACHE", [4] = "RESERVED 1", [5] = "DISCARD", [6] = "INDIRECT" },
  ["blkif32_discard.operation"] = { [0] = "READ", [1] = "WRITE", [2] = "WRITE BARRIER", [3] = "FLUSH DISKCACHE", [4] = "RESERVED 1", [5] = "DISCARD", [6] = "INDIRECT" },
  ["blkif32_indirect.operation"] = { [0] = "READ", [1] = "WRITE", [2] = "WRITE BARRIER", [3] = "FLUSH DISKCACHE", [4] = "RESERVED 1", [5] = "DISCARD", [6] = "INDIRECT" },
  ["blkif32_other.operation"] = { [0] = "READ", [1] = "WRITE", [2] = "WRITE BARRIER", [3] = "FLUSH DISKCACHE", [4] = "RESERVED 1", [5] = "DISCARD", [6] = "INDIRECT" },
  ["blkif32_response.operation"] = { [0] = "READ", [1] = "WRITE", [2] = "WRITE BARRIER", [3] = "FLUSH DISKCACHE", [4] = "RESERVED 1", [5] = "DISCARD", [6] = "INDIRECT" },
  ["blkif_segment.operation"] = { [0] = "READ", [1] = "WRITE", [2] = "WRITE BARRIER", [3] = "FLUSH DISKCACHE", [4] = "RESERVED 1", [5] = "DISCARD", [6] = "INDIRECT" },
  ["blkif64_indirect.indirect_op"] = { [0] = "READ", [1] = "WRITE", [2] = "WRITE BARRIER", [3] = "FLUSH DISKCACHE", [4] = "RESERVED 1", [5] = "DISCARD", [6] = "INDIRECT" },
  ["blkif32_indirect.indirect_op"] = { [0] = "READ", [1] = "WRITE", [2] = "WRITE BARRIER", [3] = "FLUSH DISKCACHE", [4] = "RESERVED 1", [5] = "DISCARD", [6] = "INDIRECT" },
  ["blkif64_response.status"] = { [0] = "OKAY", [-1] = "ERROR", [-2] = "EOPNOTSUPP" },
  ["blkif32_response.status"] = { [0] = "OKAY", [-1] = "ERROR", [-2] = "EOPNOTSUPP" },
}
local MADS = { [1] = "mad_empty_iu", [2] = "mad_buffer", [3] = "mad_buffer", [4] = "mad_buffer", [5] = "mad_buffer", [1448280065] = "mad_region", [1448280066] = "mad_region" }
local IS = {
  PROTOCOL_SRP = 1,
  PROTOCOL_VSCSIIF = 2,
  PROTOCOL_BLKIF = 3,
  WAY_TO_TARGET = 0,
  WAY_TO_INITIATOR = 1,
  LAYOUT_NONE = 0,
  LAYOUT_X86_64 = 1,
  LAYOUT_X86_32 = 2,
  PAYLOAD_NONE = 0,
  PAYLOAD_HEAD = 1,
  PAYLOAD_XXH64 = 2,
  SLOT_SRP = 1,
  SLOT_MAD = 2,
  IU_LOGIN_REQ = 0,
  IU_TSK_MGMT = 1,
  IU_CMD = 2,
  IU_I_LOGOUT = 3,
  IU_CRED_RSP = 65,
  IU_AER_RSP = 66,
  IU_T_LOGOUT = 128,
  IU_CRED_REQ = 129,
  IU_AER_REQ = 130,
  IU_LOGIN_RSP = 192,
  IU_RSP = 193,
  IU_LOGIN_REJ = 194,
  BUFFER_NONE = 0,
  BUFFER_DIRECT = 1,
  BUFFER_INDIRECT = 2,
  BUFFER_IMMEDIATE = 3,
  FLAG_RSPVALID = 1,
  FLAG_SNSVALID = 2,
  FLAG_DOOVER = 4,
  FLAG_DOUNDER = 8,
  FLAG_DIOVER = 16,
  FLAG_DIUNDER = 32,
  ACT_CDB = 1,
  ACT_ABORT = 2,
  ACT_RESET = 3,
  ACT_SG_PRESET = 4,
  DIRECTION_BIDIRECTIONAL = 0,
  DIRECTION_TO_DEVICE = 1,
  DIRECTION_FROM_DEVICE = 2,
  DIRECTION_NONE = 3,
  OP_READ = 0,
  OP_WRITE = 1,
  OP_WRITE_BARRIER = 2,
  OP_FLUSH_DISKCACHE = 3,
  OP_RESERVED_1 = 4,
  OP_DISCARD = 5,
  OP_INDIRECT = 6,
  VERSION = 2,
  VSCSIIF_SEGMENTS = 26,
  VSCSIIF_PRESET_SEGMENTS = 31,
  VSCSIIF_SG_GRANT = 128,
  BLKIF_SEGMENTS = 11,
  BLKIF64_SLOT = 112,
  BLKIF32_SLOT = 108,
  SECTOR_BYTES = 512,
}
-- End of the declarations.

local vscsi = Proto("vscsi", "Rings of vscsi")
local USER0 = 45 -- Wireshark's own number of link type 147
local MAX_SEGMENTS = 512 -- shown of a command

-- Fields

local fields = {}

local function make_field(abbreviation, name, size, kind, codes)
  if kind == "bytes" then
    return ProtoField.bytes(abbreviation, name)
  end
  local types = { [1] = "int8", [2] = "int16", [4] = "int32", [8] = "int64" }
  local make = ProtoField[(kind == "signed" and "" or "u") .. types[size]]
  local number_base = (kind == "signed" or codes or size < 8) and base.DEC or base.HEX
  return make(abbreviation, name, number_base, codes)
end

for format, rows in pairs(FORMATS) do
  for _, row in ipairs(rows) do
    local path = format .. "." .. row[1]
    local name = row[1]:gsub("_", " ")
    fields[path] = make_field("vscsi." .. path, name, row[3], row[4], CODES[path])
  end
end

fields.tag = ProtoField.uint64("vscsi.tag", "tag", base.HEX)
fields.path = ProtoField.string("vscsi.path", "path")
fields.message = ProtoField.bytes("vscsi.message", "message")
fields.cdb = ProtoField.bytes("vscsi.cdb", "CDB")
fields.sense = ProtoField.bytes("vscsi.sense", "sense data")
fields.response_data = ProtoField.bytes("vscsi.response_data", "response data")
fields.payload = ProtoField.bytes("vscsi.payload", "payload")
fields.request_in = ProtoField.framenum("vscsi.request_in", "request in", base.NONE, frametype.REQUEST)
fields.answer_in = ProtoField.framenum("vscsi.answer_in", "answer in", base.NONE, frametype.RESPONSE)
fields.time = ProtoField.relative_time("vscsi.time", "time from the request")

local list = {}
for _, field in pairs(fields) do
  list[#list + 1] = field
end
vscsi.fields = list

local short = ProtoExpert.new(
  "vscsi.short", "the message is shorter than it says", expert.group.MALFORMED, expert.severity.WARN
)
local foreign = ProtoExpert.new(
  "vscsi.foreign", "no record of this version", expert.group.UNDECODED, expert.severity.WARN
)
vscsi.experts = { short, foreign }

-- What was seen of each ring: requests that wait for an answer, and pairs, by frame number.

local waiting, answer_of, request_of = {}, {}, {}

function vscsi.init()
  waiting, answer_of, request_of = {}, {}, {}
end

-- Reading

local function value_of(row, range)
  if row[4] == "bytes" then
    return range
  end
  if row[3] == 8 then
    return row[5] and range:le_uint64() or range:uint64()
  end
  if row[4] == "signed" then
    return row[5] and range:le_int() or range:int()
  end
  return row[5] and range:le_uint() or range:uint()
end

-- Show a format's fields, as many as are there; return their values by name, and their bytes.
local function show(tree, format, tvb, title)
  local values, size = {}, 0
  local rows = FORMATS[format]
  local last = rows[#rows]
  local branch = tree:add(vscsi, tvb(0, math.min(tvb:len(), last[2] + last[3])), title)
  for _, row in ipairs(rows) do
    if row[2] + row[3] > tvb:len() then
      if row[1] ~= "reserved" then -- some answers end before it
        branch:add_proto_expert_info(short)
      end
      return values, size, branch
    end
    local range = tvb(row[2], row[3])
    values[row[1]] = value_of(row, range)
    if row[5] then
      branch:add_le(fields[format .. "." .. row[1]], range)
    else
      branch:add(fields[format .. "." .. row[1]], range)
    end
    size = row[2] + row[3]
  end
  return values, size, branch
end

local function size_of(format)
  local last = FORMATS[format][#FORMATS[format]]
  return last[2] + last[3]
end

-- Show a table of segments or descriptors; return the sum of what `count_of` says of each.
local function show_table(tree, format, tvb, count, count_of)
  local size, sum = size_of(format), 0
  for at = 0, count - 1 do
    if (at + 1) * size > tvb:len() then
      tree:add_proto_expert_info(short)
      break
    end
    if at < MAX_SEGMENTS then
      local values = show(tree, format, tvb(at * size, size):tvb(), format .. " " .. at)
      sum = sum + count_of(values)
    end
  end
  return sum
end

local function rest(tvb, at)
  return at < tvb:len() and tvb(at):tvb() or nil
end

local function word(path, code)
  return CODES[path] and CODES[path][code] or string.format("%s 0x%x", path:match("[^.]*$"), code)
end

-- Pairs

local function key_of(context, tag)
  return context.path .. "/" .. tostring(tag)
end

-- Show a message's tag and its partner; return what is known of an answer's request.
local function show_tag(context, tag, is_request, is_command)
  local key, number = key_of(context, tag), context.pinfo.number
  context.tree:add(fields.tag, context.message, tag):set_generated()
  if not context.pinfo.visited then
    if is_request then
      waiting[key] = { number = number, time = context.pinfo.rel_ts, is_command = is_command }
    elseif waiting[key] then
      request_of[number] = waiting[key]
      answer_of[waiting[key].number] = number
      waiting[key] = nil
    end
  end
  if is_request and answer_of[number] then
    context.tree:add(fields.answer_in, answer_of[number]):set_generated()
  elseif not is_request and request_of[number] then
    local request = request_of[number]
    context.tree:add(fields.request_in, request.number):set_generated()
    local ns = math.floor((context.pinfo.rel_ts - request.time) * 1e9 + 0.5)
    local time = NSTime(math.floor(ns / 1e9), ns % 1e9)
    context.tree:add(fields.time, context.message, time):set_generated()
    return request
  end
end

-- SCSI, by way of iSCSI (RFC 7143: 11.3 command, 11.4 response, 11.7 data-in)

local iscsi = Dissector.get("iscsi")

local function number32(value)
  return string.char(
    math.floor(value / 16777216) % 256, math.floor(value / 65536) % 256,
    math.floor(value / 256) % 256, value % 256
  )
end

local function call_iscsi(context, head, data)
  local padded = data .. string.rep("\0", -#data % 4)
  local pdu = ByteArray.new(head .. padded, true):tvb("SCSI, as an iSCSI PDU")
  -- Conversations are told apart by addresses: one for each ring, which no column shows.
  local record, pinfo = context.record, context.pinfo
  local initiator = Address.ip(
    string.format("10.%d.%d.%d", record.protocol * 16 + record.queue % 16,
      record.domain % 256, record.device % 256)
  )
  local target = Address.ip("10.255.255.255")
  local is_request = record.direction == IS.WAY_TO_TARGET
  local src, dst = pinfo.src, pinfo.dst
  pinfo.src, pinfo.dst = is_request and initiator or target, is_request and target or initiator
  iscsi:call(pdu, pinfo, context.tree)
  pinfo.src, pinfo.dst = src, dst
end

local function task_tag(tag)
  return number32((tag:lower() + tag:higher()) % 4294967296)
end

local ATTRIBUTES = { [0] = 1, [1] = 3, [2] = 2, [4] = 4 } -- of SRP, as iSCSI's

-- reads, writes: bytes of the buffers; data: what was captured of data-out.
local function scsi_command(context, tag, lun, cdb, attribute, reads, writes, data)
  context.tree:add(fields.cdb, cdb)
  local flags = 128 + (reads > 0 and 64 or 0) + (writes > 0 and 32 or 0)
    + (ATTRIBUTES[attribute] or 0)
  local bytes = cdb:raw()
  local more = math.max(#bytes - 16, 0)
  local longer = ""
  if more > 0 then -- an additional header segment for the rest of the CDB (RFC 7143 11.2.2.3)
    longer = string.char(0, more + 1, 1, 0) .. bytes:sub(17) .. string.rep("\0", -more % 4)
  end
  local head = string.char(1, flags, 0, 0, #longer / 4) .. number32(#data):sub(2) .. lun
    .. task_tag(tag) .. number32(math.max(reads, writes)) .. number32(0) .. number32(0)
    .. (bytes:sub(1, 16) .. string.rep("\0", 16)):sub(1, 16) .. longer
  call_iscsi(context, head, data)
end

local function scsi_answer(context, tag, response, status, sense, residual, data)
  if #data > 0 then
    local head = string.char(0x25, 128, 0, 0, 0) .. number32(#data):sub(2) .. string.rep("\0", 8)
      .. task_tag(tag) .. string.rep("\255", 4) .. string.rep("\0", 24)
    call_iscsi(context, head, data)
  end
  local segment = ""
  if #sense > 0 then
    segment = string.char(math.floor(#sense / 256), #sense % 256) .. sense
  end
  local flags = 128 + (residual > 0 and 2 or residual < 0 and 4 or 0)
  local head = string.char(0x21, flags, response, status, 0) .. number32(#segment):sub(2)
    .. string.rep("\0", 8) .. task_tag(tag) .. string.rep("\0", 24)
    .. number32(math.abs(residual))
  call_iscsi(context, head, segment)
end

-- SRP

local IUS = {
  [IS.IU_LOGIN_REQ] = "srp_login_req", [IS.IU_LOGIN_RSP] = "srp_login_rsp",
  [IS.IU_LOGIN_REJ] = "srp_login_rej", [IS.IU_I_LOGOUT] = "srp_i_logout",
  [IS.IU_T_LOGOUT] = "srp_t_logout", [IS.IU_CMD] = "srp_cmd", [IS.IU_RSP] = "srp_rsp",
  [IS.IU_TSK_MGMT] = "srp_tsk_mgmt", [IS.IU_CRED_REQ] = "srp_cred_req",
  [IS.IU_CRED_RSP] = "srp_cred_rsp", [IS.IU_AER_REQ] = "srp_aer_req",
  [IS.IU_AER_RSP] = "srp_aer_rsp",
}
local DESCRIPTOR_BYTES = size_of("srp_descriptor")

-- Show one of a command's two buffers; return its bytes and what lies behind it.
local function srp_buffer(tree, form, count, area)
  if not area or form == IS.BUFFER_NONE then
    return 0, area
  end
  if form == IS.BUFFER_DIRECT then
    local length = show_table(tree, "srp_descriptor", area, 1, function(d) return d.length or 0 end)
    return length, rest(area, DESCRIPTOR_BYTES)
  end
  if form == IS.BUFFER_INDIRECT and area:len() >= DESCRIPTOR_BYTES + 4 then
    show_table(tree, "srp_descriptor", area, 1, function() return 0 end)
    local entries = rest(area, DESCRIPTOR_BYTES + 4)
    if entries and count > 0 then
      show_table(tree, "srp_descriptor", entries, count, function() return 0 end)
    end
    local total = area(DESCRIPTOR_BYTES, 4):uint()
    return total, rest(area, DESCRIPTOR_BYTES + 4 + count * DESCRIPTOR_BYTES)
  end
  return 0, nil
end

local function srp_command(context, iu, unit, size, branch)
  local more = iu.additional_cdb_length - iu.additional_cdb_length % 4
  if size + more > unit:len() then
    branch:add_proto_expert_info(short)
    return
  end
  local outs, ins = math.floor(iu.data_formats / 16), iu.data_formats % 16
  local area = rest(unit, size + more)
  local writes, reads
  writes, area = srp_buffer(branch, outs, iu.data_out_count, area)
  reads = srp_buffer(branch, ins, iu.data_in_count, area)
  local cdb = unit(size - 16, 16 + more)
  scsi_command(context, iu.tag, iu.lun:raw(), cdb, iu.attribute % 8, reads, writes, context.data)
end

local function srp_response(context, iu, unit, size, branch)
  local at, code, sense = size, 0, ""
  local function flag(bit)
    return math.floor(iu.flags / bit) % 2 == 1
  end
  if flag(IS.FLAG_RSPVALID) and at + iu.response_data_length <= unit:len() then
    if iu.response_data_length > 0 then
      branch:add(fields.response_data, unit(at, iu.response_data_length))
    end
    code = iu.response_data_length >= 4 and unit(at + 3, 1):uint() or 0
    at = at + iu.response_data_length
  end
  if flag(IS.FLAG_SNSVALID) and iu.sense_data_length > 0 then
    if at + iu.sense_data_length <= unit:len() then
      branch:add(fields.sense, unit(at, iu.sense_data_length))
      sense = unit(at, iu.sense_data_length):raw()
    else
      branch:add_proto_expert_info(short)
    end
  end
  local over = flag(IS.FLAG_DOOVER) or flag(IS.FLAG_DIOVER)
  local residual = iu.data_out_residual + iu.data_in_residual
  if flag(IS.FLAG_RSPVALID) and iu.response_data_length > 0 then
    context.info = string.format("RSP response code %d", code)
  else
    scsi_answer(context, iu.tag, 0, iu.status, sense, over and -residual or residual, context.data)
  end
end

local function show_srp(context)
  local slot, size = show(context.tree, "srp_slot", context.message:tvb(), "slot")
  local unit = slot.length and rest(context.message:tvb(), size)
  if not unit or slot.length > unit:len() or slot.length == 0 then
    context.tree:add_proto_expert_info(short)
    return
  end
  unit = unit(0, slot.length):tvb()
  local is_request = context.record.direction == IS.WAY_TO_TARGET
  if slot.format == IS.SLOT_MAD then
    local format = unit:len() >= 4 and MADS[unit(0, 4):uint()] or "mad"
    local message = show(context.tree, format, unit, "MAD")
    if message.tag then
      context.info = "MAD " .. (is_request and word("mad.type", message.type)
        or word("mad.status", message.status))
      show_tag(context, message.tag, is_request)
    end
    return
  end
  local format = IUS[unit(0, 1):uint()]
  if not format then
    context.tree:add_proto_expert_info(short)
    return
  end
  local name = word("srp_cmd.type", unit(0, 1):uint())
  local iu, bytes, branch = show(context.tree, format, unit, name)
  context.info = name
  if not iu.tag or bytes < size_of(format) then
    return
  end
  local asks = unit(0, 1):uint() % 128 < 64 -- answers have 64 in their types
  show_tag(context, iu.tag, asks)
  if format == "srp_cmd" and is_request then
    srp_command(context, iu, unit, bytes, branch)
  elseif format == "srp_rsp" and not is_request then
    srp_response(context, iu, unit, bytes, branch)
  elseif format == "srp_tsk_mgmt" then
    context.info = word("srp_tsk_mgmt.function", iu["function"])
  end
end

-- vscsiif

local function zeros(count)
  return string.rep("\0", count)
end

local function show_vscsiif(context)
  local tvb = context.message:tvb()
  if context.record.direction == IS.WAY_TO_INITIATOR then
    local answer = show(context.tree, "vscsiif_response", tvb, "response")
    if not answer.residual then
      return
    end
    local tag = UInt64(answer.rqid, 0)
    local request = show_tag(context, tag, false)
    local sense = ""
    if answer.sense_len > 0 and answer.sense_len <= answer.sense_buffer:len() then
      local range = answer.sense_buffer(0, answer.sense_len)
      context.tree:add(fields.sense, range)
      sense = range:raw()
    end
    local status, host = answer.rslt % 256, math.floor(answer.rslt / 65536) % 256
    context.info = string.format("result 0x%x", answer.rslt % 4294967296)
    if host == 0 and (not request or request.is_command) then -- a function's looks like a status
      scsi_answer(context, tag, 0, status, sense, answer.residual, context.data)
    end
    return
  end
  local preset = tvb:len() > 2 and tvb(2, 1):uint() == IS.ACT_SG_PRESET
  local format = preset and "vscsiif_preset" or "vscsiif_request"
  local request, size, branch = show(context.tree, format, tvb, "request")
  if size < size_of(format) then
    return
  end
  local count = request.nr_segments % IS.VSCSIIF_SG_GRANT
  local limit = preset and IS.VSCSIIF_PRESET_SEGMENTS or IS.VSCSIIF_SEGMENTS
  local function length_of(segment)
    return segment.length or 0
  end
  local length = show_table(
    branch, "vscsiif_segment", tvb(size):tvb(), math.min(count, limit), length_of
  )
  if request.nr_segments >= IS.VSCSIIF_SG_GRANT and context.segments then
    local entries = math.floor(context.segments:len() / size_of("vscsiif_segment"))
    length = show_table(branch, "vscsiif_segment", context.segments, entries, length_of)
  end
  local tag = UInt64(request.rqid, 0)
  show_tag(context, tag, true, request.act == IS.ACT_CDB)
  context.info = word("vscsiif_request.act", request.act)
  if request.act ~= IS.ACT_CDB then
    return
  end
  local cdb = request.cdb(0, math.max(1, math.min(request.cmd_len, 16)))
  local writes = request.direction == IS.DIRECTION_TO_DEVICE
  local high, low = math.floor(request.lun / 256), request.lun % 256
  local lun = string.char(high > 0 and 64 + high % 64 or 0, low) .. zeros(6) -- SAM: flat from 256
  scsi_command(
    context, tag, lun, cdb, 0, writes and 0 or length, writes and length or 0, context.data
  )
end

-- blkif

local function show_blkif(context)
  local tvb = context.message:tvb()
  local packed = context.record.layout == IS.LAYOUT_X86_32
  local prefix = packed and "blkif32_" or "blkif64_"
  local slot_bytes = packed and IS.BLKIF32_SLOT or IS.BLKIF64_SLOT
  if context.record.direction == IS.WAY_TO_INITIATOR then
    local answer = show(context.tree, prefix .. "response", tvb, "response")
    if answer.status then
      context.info = word(prefix .. "response.operation", answer.operation) .. ": "
        .. word(prefix .. "response.status", answer.status)
      show_tag(context, answer.id, false)
    end
    return
  end
  local operation = tvb:len() > 0 and tvb(0, 1):uint() or -1
  local format = prefix .. (operation <= IS.OP_FLUSH_DISKCACHE and "rw"
    or operation == IS.OP_DISCARD and "discard"
    or operation == IS.OP_INDIRECT and "indirect" or "other")
  local request, size, branch = show(context.tree, format, tvb, "request")
  if not request.id then
    return
  end
  show_tag(context, request.id, true)
  local function sectors_of(segment)
    return math.max(0, segment.last_sect - segment.first_sect + 1)
  end
  context.info = word(prefix .. "rw.operation", operation)
  local sectors = request.nr_sectors and request.nr_sectors:tonumber() or 0
  if format == prefix .. "indirect" then
    context.info = context.info .. " " .. word(prefix .. "rw.operation", request.indirect_op)
    if context.segments then
      local entries = math.floor(context.segments:len() / size_of("blkif_segment"))
      sectors = show_table(branch, "blkif_segment", context.segments, entries, sectors_of)
    end
  elseif format == prefix .. "rw" then
    local here = math.min(request.nr_segments, IS.BLKIF_SEGMENTS)
    if here > 0 and size < tvb:len() then
      sectors = show_table(branch, "blkif_segment", tvb(size):tvb(), here, sectors_of)
    end
    if tvb:len() > slot_bytes then -- FreeBSD's segment blocks
      sectors = sectors + show_table(
        branch, "blkif_segment", tvb(slot_bytes):tvb(), request.nr_segments - here, sectors_of
      )
    end
  end
  if request.sector_number then
    context.info = string.format(
      "%s sector %s sectors %d", context.info, tostring(request.sector_number), sectors
    )
  end
end

-- Records

local SHOW = {
  [IS.PROTOCOL_SRP] = show_srp,
  [IS.PROTOCOL_VSCSIIF] = show_vscsiif,
  [IS.PROTOCOL_BLKIF] = show_blkif,
}

function vscsi.dissector(tvb, pinfo, tree)
  local top = tree:add(vscsi, tvb())
  local record, head, branch = show(top, "record", tvb, "record")
  if head < size_of("record") or record.version ~= IS.VERSION then
    top:add_proto_expert_info(foreign)
    return
  end
  local segments_at = head + record.message_length
  local payload_at = segments_at + record.segments_length
  if payload_at > tvb:len() then
    branch:add_proto_expert_info(short)
    return
  end
  local protocol = word("record.protocol", record.protocol):lower()
  local path = string.format("%s-%d-%d", protocol, record.domain, record.device)
  if record.queue > 0 then
    path = path .. "-" .. record.queue
  end
  top:add(fields.path, path):set_generated()
  top:append_text(", " .. path)
  pinfo.cols.protocol = protocol
  pinfo.cols.info = ""
  if record.message_length == 0 then
    return
  end
  local message = tvb(head, record.message_length)
  local segments = record.segments_length > 0
    and tvb(segments_at, record.segments_length):tvb() or nil
  local context = {
    record = record, path = path, pinfo = pinfo, tree = top, message = message,
    segments = segments, data = "",
  }
  if payload_at < tvb:len() then
    top:add(fields.payload, tvb(payload_at))
    if record.payload_kind == IS.PAYLOAD_HEAD then
      context.data = tvb(payload_at):raw()
    end
  end
  top:add(fields.message, message)
  if SHOW[record.protocol] then
    SHOW[record.protocol](context)
  end
  pinfo.cols.protocol = protocol
  if tostring(pinfo.cols.info) == "" or tostring(pinfo.cols.info) == "(info)" then
    pinfo.cols.info = context.info or "?"
  end
  local guest, host = "domain " .. record.domain, "device " .. record.device
  local is_request = record.direction == IS.WAY_TO_TARGET
  pinfo.cols.src = is_request and guest or host
  pinfo.cols.dst = is_request and host or guest
end

DissectorTable.get("wtap_encap"):add(USER0, vscsi)
